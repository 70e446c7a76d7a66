"""Milliseconds for one more token of every row, by number of rows and length of context, and what a token launches."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import GenerationConfig

from benchmarks.gpu.parity import mismatch
from benchmarks.gpu.place import Place
from benchmarks.gpu.record import Record
from benchmarks.gpu.shapes import random_model, random_prompts
from hopd.model import LanguageModel
from hopd.rollout import NativeEngine, Sampling
from hopd.rollout.native import acceleration
from hopd.rollout.native.acceleration import decoding_note
from hopd.rollout.native.prefix import flush_right

CASES = [(8, 128), (32, 128), (32, 4096), (32, 8192), (64, 4096)]  # rows, tokens of context
COUNTED = ("cudaStreamSynchronize", "cudaMalloc", "cudaMemcpyAsync", "cudaGraphLaunch", "aten::clone")


def run(place: Place, record: Record) -> None:
    model = random_model(place, "1.5b", torch.bfloat16)
    for decoder in ("as it is", "the model's modules"):
        with by(decoder):
            for rows, context in [(4, 64)] if place.tiny else CASES:
                record.add("decode", decoder=decoder, note=decoding_note(model), **_case(place, model, rows, context))
            record.add("profile", decoder=decoder, **_launches(place, model))
    for rows, context in [(4, 64)] if place.tiny else CASES[1:3]:
        seconds = _generate(place, model, rows, context)
        record.add("generate", rows=rows, context=context, ms_a_token=1e3 * seconds)


@contextmanager
def by(decoder: str) -> Iterator[None]:
    """Until the block ends, a model decodes by its own modules, where `decoder` says so."""
    with ExitStack() as stack:
        if decoder != "as it is":
            stack.enter_context(patch.object(acceleration, "decodes_by_graph", lambda model: False))
        yield


def _case(place: Place, model: LanguageModel, rows: int, context: int) -> dict[str, float]:
    prompts, engine = random_prompts(rows, context, model.head.vocabulary), NativeEngine(model, rows)
    few, many = (2, 6) if place.tiny else (32, 160)
    place.empty()
    engine.sample(prompts, few, Sampling(), 0)  # the first call at a size allocates
    short, _ = place.seconds(lambda: engine.sample(prompts, few, Sampling(), 0))
    long, made = place.seconds(lambda: engine.sample(prompts, many, Sampling(), 0))
    return {
        "rows": rows,
        "context": context,
        "ms_a_token": 1e3 * (long - short) / (many - few),
        "first_tokens_s": short,
        "peak_gb": place.peak_gb,
        "reserved_gb": place.reserved_gb,
        "mismatch": float(mismatch(model, made[0]).mean()),
    }


def _launches(place: Place, model: LanguageModel, rows: int = 8, tokens: int = 16) -> dict[str, float]:
    """Returns, for each token, how often the CPU waited for the GPU, and launched something on it."""
    few, many = (_counted(place, model, rows, count) for count in (8, 8 + tokens))
    return {name: (many[name] - few[name]) / tokens for name in many}


def _counted(place: Place, model: LanguageModel, rows: int, tokens: int) -> dict[str, int]:
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if place.device.type == "cuda" else [])
    prompts = random_prompts(rows, 64, model.head.vocabulary)
    with profile(activities=activities) as seen:
        NativeEngine(model, rows).sample(prompts, tokens, Sampling(), 0)
    events = {event.key: event.count for event in seen.key_averages()}
    launches = sum(count for name, count in events.items() if "LaunchKernel" in name)
    return {name: events.get(name, 0) for name in COUNTED} | {"launches": launches}


def _generate(place: Place, model: LanguageModel, rows: int, context: int) -> float:
    """Returns transformers' seconds for one more token of every row, with its dynamic cache."""
    few, many = (2, 6) if place.tiny else (16, 80)
    prompts = random_prompts(rows, context, model.head.vocabulary)
    ids, mask = flush_right([prompt.ids for prompt in prompts], place.device)
    transformers_own: Any = model.model

    def sample(tokens: int) -> None:
        config = GenerationConfig(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, top_k=0, pad_token_id=0)
        transformers_own.generate(ids, attention_mask=mask.long(), generation_config=config)

    sample(few)
    short, _ = place.seconds(lambda: sample(few))
    long, _ = place.seconds(lambda: sample(many))
    return (long - short) / (many - few)
