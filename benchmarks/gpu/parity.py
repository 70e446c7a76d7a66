"""The native engine against transformers' `generate()` and against plain forward passes, with trained models."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.place import Place
from benchmarks.gpu.record import Record
from benchmarks.gpu.shapes import QUICKSTART
from hopd.model import LanguageModel, load
from hopd.rollout import NativeEngine, Prompt, Rollout, Sampling
from hopd.rollout.native.acceleration import decoding_note
from hopd.tasks import RepeatedAddition


def run(place: Place, record: Record) -> None:
    tokens = 12 if place.tiny else 96
    for dtype in (torch.float32, torch.bfloat16):
        model = load(QUICKSTART, dtype=dtype, device=place.device)
        prompts = [
            Prompt(i, torch.tensor(model.tokenizer(problem.prompt).input_ids[: 3 + i % 9]))
            for i, problem in enumerate(RepeatedAddition(12, 8).problems)
        ]
        greedy = NativeEngine(model, rows=8).sample(prompts, tokens, Sampling(0.0), 0)
        drawn = NativeEngine(model, rows=16).sample(prompts, tokens, Sampling(), 1, 2)
        again = NativeEngine(model, rows=3).sample(prompts, tokens, Sampling(), 1, 2)
        apart = torch.cat([mismatch(model, rollout) for rollout in drawn])
        record.add(
            "parity",
            precision=str(dtype).removeprefix("torch."),
            decoder=decoding_note(model),
            greedy_same=sum(generated(model, rollout) == rollout.ids.tolist() for rollout in greedy) / len(greedy),
            log_prob_apart_mean=float(apart.mean()),
            log_prob_apart_max=float(apart.max()),
            same_in_other_batches=sum(
                one.ids.tolist() == other.ids.tolist() for one, other in zip(drawn, again, strict=True)
            )
            / len(drawn),
        )


def generated(model: LanguageModel, rollout: Rollout) -> list[int]:
    """Returns what transformers generates where the engine gave `rollout`, by the most likely tokens."""
    prompt = rollout.prompt.ids[None].to(model.device)
    transformers_own: Any = model.model
    made = transformers_own.generate(prompt, max_new_tokens=rollout.length, do_sample=False)
    tokens: list[int] = made[0, prompt.shape[1] :].tolist()
    return tokens


@torch.no_grad()
def mismatch(model: LanguageModel, rollout: Rollout) -> Tensor:
    """Returns, in nats for each token, how far the engine's log-probs are from those of one plain forward pass."""
    ids = torch.cat([rollout.prompt.ids, rollout.ids])[None].to(model.device)
    logits = model.head.logits(model.hidden(ids)[0, len(rollout.prompt.ids) - 1 : -1])
    plain = logits.log_softmax(-1).gather(-1, rollout.ids[:, None].to(model.device))[:, 0]
    return (rollout.log_probs - plain.cpu()).abs()
