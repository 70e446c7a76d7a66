"""One training step of hopd and one of TRL in turns, on the same GPU: the pair of `make bench`, in another shape."""

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.gpu.place import Place
from benchmarks.gpu.record import Record
from benchmarks.gpu.shapes import QUICKSTART, random_model
from benchmarks.pair import measure
from benchmarks.rows import step_case, step_row
from hopd.model import load

PROMPTS = 16


def run(place: Place, record: Record) -> None:
    if find_spec("trl") is None:
        record.add("trl", skipped="the package trl is not installed")
        return
    tokens, turns = (4, 1) if place.tiny else (256, 3)
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory)
        for seed, name in enumerate(("student", "teacher")):
            _write(place, models / name, seed)
        case = step_case(models, _prompts(models), "bf16") | {
            "tokens": tokens,
            "batch": PROMPTS,
            "tokens_per_batch": PROMPTS * 512,
            "checkpointing": True,
        }
        row = step_row(case, f"step, {PROMPTS} × (120 + {tokens}), bf16: TRL")
        measured = measure(row.ours, row.theirs, turns)
        record.add(
            "trl",
            ratio=measured.ratio,
            lowest=measured.spread[0],
            highest=measured.spread[1],
            seconds_ours=measured.seconds("ours"),
            seconds_theirs=measured.seconds("theirs"),
            device_gb_ours=measured.last("ours", "device_bytes") / 1e9,
            device_gb_theirs=measured.last("theirs", "device_bytes") / 1e9,
            phases_ours=measured.last("ours", "phases"),
            work=row.check(measured),
        )


def _write(place: Place, directory: Path, seed: int) -> None:
    """Writes a random model with the quickstart's tokenizer. A rollout ends at one id of the vocabulary, which random
    logits give about once in 150,000 tokens."""
    made = random_model(place, "0.5b", torch.bfloat16, seed)
    tokenizer = load(QUICKSTART).tokenizer
    for config in (made.model.config, made.model.generation_config):
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    made.model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _prompts(directory: Path) -> Path:
    """Writes prompts of 96 to 144 characters, which are the quickstart's tokens."""
    path = directory / "prompts.jsonl"
    sums = "".join(f"{i % 97}+{i % 89}=" for i in range(11, 400))
    lines = [json.dumps({"prompt": sums[5 * i : 5 * i + 96 + 7 * i % 49]}) for i in range(PROMPTS)]
    path.write_text("\n".join(lines) + "\n")
    return path
