"""Makes the quickstart's teacher and student, from a seed.

The teacher is a 3-layer Llama of 0.65M parameters, trained on scratchpads of repeated addition. The student is a
copy of it, fine-tuned for a minute on scratchpads that forget half of the carries: a model of the same family,
which still knows the format and has lost the skill. Both see only training pairs.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hopd.tasks.addition import MODULUS, SYMBOLS, is_held_out, prompt, scratchpad

STEPS = 12
BATCH = 32
TEACHER_UPDATES = 2600
STUDENT_UPDATES = 200
DROPPED_CARRIES = 0.5

Examples = Callable[[int], Sequence[tuple[str, str]]]
"""Gives the prompts and responses that the update of this number learns from."""


def make(out: Path, seed: int = 0, log: Callable[[str], None] = print) -> None:
    """Writes `out/teacher` and `out/student` (Hugging Face layout, bf16 safetensors, tokenizer included)."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = character_tokenizer(SYMBOLS)
    model = small_llama(tokenizer)
    log(f"teacher: {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters")
    fine_tune(model, tokenizer, scratchpads(rng, 0.0), TEACHER_UPDATES, learning_rate=1.5e-3, log=log)
    save(model, tokenizer, out / "teacher")
    fine_tune(model, tokenizer, scratchpads(rng, DROPPED_CARRIES), STUDENT_UPDATES, learning_rate=5e-4, log=log)
    save(model, tokenizer, out / "student")


def small_llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def character_tokenizer(symbols: Sequence[str]) -> PreTrainedTokenizerFast:
    vocabulary = {symbol: i for i, symbol in enumerate(["<pad>", "<eos>", "<unk>", *symbols])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=1024
    )


def fine_tune(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    examples: Examples,
    updates: int,
    learning_rate: float,
    log: Callable[[str], None],
) -> None:
    """Trains `model` in place by cross-entropy on the responses (mean over their tokens), with AdamW and one cycle."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=updates, pct_start=0.1)
    model.train()
    started = time.perf_counter()
    for update in range(updates):
        ids, labels = batch(tokenizer, examples(update))
        loss = model(input_ids=ids.to(model.device), labels=labels.to(model.device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if update % 50 == 49:
            log(f"  update {update + 1}/{updates}  loss {loss.item():.4f}  {time.perf_counter() - started:.0f} s")


def scratchpads(rng: random.Random, drop_carry: float) -> Examples:
    """Returns scratchpads of the quickstart's task: 12 steps in every other batch, 1 to 12 in the rest."""

    def of_update(update: int) -> Sequence[tuple[str, str]]:
        steps = STEPS if update % 2 == 0 else rng.randint(1, STEPS)
        drawn = training_pairs(rng, BATCH)
        return [(prompt(*pair, steps), scratchpad(*pair, steps, rng, drop_carry)) for pair in drawn]

    return of_update


def training_pairs(rng: random.Random, count: int) -> Iterator[tuple[int, int]]:
    """Draws `count` starts and addends that are not held out for evaluation."""
    while count:
        pair = rng.randrange(MODULUS), rng.randrange(MODULUS)
        if not is_held_out(*pair):
            count -= 1
            yield pair


def batch(tokenizer: PreTrainedTokenizerFast, examples: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Returns token ids of prompts and responses, padded on the right, and labels: −100 on prompts and padding."""
    rows = [question + response + tokenizer.eos_token for question, response in examples]
    encoded = tokenizer(rows, return_tensors="pt", padding=True, padding_side="right")
    labels = encoded.input_ids.masked_fill(encoded.attention_mask == 0, -100)
    for label, (question, _) in zip(labels, examples, strict=True):
        label[: len(tokenizer(question).input_ids)] = -100
    return encoded.input_ids, labels


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes model and tokenizer, the weights in bf16, which halves the files; `model` itself is rounded too."""
    model.bfloat16().save_pretrained(out)
    model.float()
    tokenizer.save_pretrained(out)
