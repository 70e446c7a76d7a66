"""A tokenizer of letters, with a post-processor and a chat template as wanted, and a model that reads it."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TOKENS = ["<bos>", "<eos>", "<end>", *"0123456789abcdefghijklmnopqrstuvwxyz+*:=;# "]
TURNS = (
    "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}##{% endif %}"
)


def letters(post: str | None = None, template: str | None = None) -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose token is a letter; `post` such as `<bos> $A` says what it puts around a text."""
    core = Tokenizer(models.WordLevel({token: id for id, token in enumerate(TOKENS)}, unk_token="#"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    if post:
        core.post_processor = processors.TemplateProcessing(single=post, special_tokens=[("<bos>", 0), ("<eos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", additional_special_tokens=["<end>"]
    )
    tokenizer.chat_template = template
    return tokenizer


def save_model(path: Path, seed: int, rows: int = len(TOKENS), tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    """Saves a random model of one layer with `rows` embeddings and a context of 64 tokens."""
    torch.manual_seed(seed)
    size: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(vocab_size=rows, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, **size)
    LlamaForCausalLM(config).save_pretrained(path)
    (tokenizer or letters()).save_pretrained(path)
    return str(path)
