"""What is compared with what: each row gives the two sides of a pair, and a check that they do the same work."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pair import Measured, Side
from benchmarks.sides.work import make_prompts, make_quickstart

LOSS_TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}  # relative, on the same rollouts; TRL keeps the residual stream in fp32
PROMPT = 120


@dataclass(frozen=True)
class Row:
    """`check` gives a sentence about the equality of work, and raises `AssertionError` where there is none. `work` is
    what the ratio of seconds is divided by to be the ratio of equal work (1 in all rows but the horizon's)."""

    name: str
    ours: Side
    theirs: Side
    check: Callable[[Measured], str]
    work: float = 1.0


def same_tokens(measured: Measured) -> str:
    for key in ("tokens", "prompt_tokens"):
        ours, theirs = measured.last("ours", key), measured.last("theirs", key)
        assert ours == theirs, f"{key}: {ours} here, {theirs} there"
    return f"{measured.last('ours', 'prompt_tokens')} prompt tokens, {measured.last('ours', 'tokens')} generated"


def step_against_trl(models: Path, precision: str) -> Row:
    case = step_case(models, make_prompts(models, 16, PROMPT), precision)
    return step_row(case, f"step, 16 × ({PROMPT} + 128), {precision}: TRL")


def step_case(models: Path, prompts: Path, precision: str) -> dict[str, Any]:
    return {
        "models": str(models),
        "prompts": str(prompts),
        "rollouts": str(models / "rollouts.json"),
        "tokens": 128,
        "batch": 8,
        "precision": precision,
    }


def step_row(case: dict[str, Any], name: str) -> Row:
    precision = case["precision"]

    def check(measured: Measured) -> str:
        said, theirs = same_tokens(measured), measured.last("theirs", "loss")
        losses = {name: _loss_of(case | {"precision": name}) for name in dict.fromkeys((precision, "fp32"))}
        ours = losses[precision]
        assert abs(ours - theirs) <= LOSS_TOLERANCE[precision] * abs(theirs), f"the loss: {ours} here, {theirs} there"
        exactly = "" if precision == "fp32" else f", {losses['fp32']:.5f} in fp32"
        return f"{said}; loss on the same rollouts {ours:.5f} here, {theirs:.5f} there{exactly}"

    return Row(name, _side("hopd_step", case), _side("trl_step", case), check)


def _loss_of(case: dict[str, Any]) -> float:
    command = [sys.executable, "-m", "benchmarks.sides.hopd_step", json.dumps(case), case["rollouts"]]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def step_against_floor(models: Path, precision: str) -> Row:
    case = {
        "models": str(models),
        "prompts": str(make_prompts(models, 16, PROMPT)),
        "tokens": 128,
        "batch": 8,
        "precision": precision,
    }
    return Row(
        f"step, 16 × ({PROMPT} + 128), {precision}: its matrix products alone",
        _side("hopd_step", case),
        _side("floor", case),
        same_tokens,
    )


def step_against_full(models: Path, precision: str, full: int, ratio: float, prompts: int = 4, samples: int = 2) -> Row:
    """The cost of a truncated step; work is the ratio of processed tokens, (P + T) over (P + ρT)."""
    case = {
        "models": str(models),
        "prompts": str(make_prompts(models, prompts, PROMPT)),
        "samples": samples,
        "tokens": full,
        "precision": precision,
    }

    def check(measured: Measured) -> str:
        ours, theirs = measured.last("ours", "tokens"), measured.last("theirs", "tokens")
        assert abs(ours - ratio * theirs) <= 0.01 * theirs, f"{ours} tokens are not {ratio} of {theirs}"
        return f"{ours} tokens against {theirs}"

    return Row(
        f"step at ρ = {ratio}, {prompts * samples} × ({PROMPT} + {full}), {precision}: the full step",
        _side("hopd_step", case | {"ratio": ratio}),
        _side("hopd_step", case),
        check,
        work=(PROMPT + full) / (PROMPT + ratio * full),
    )


def decode(
    models: Path, precision: str, other: str, rows: int, tokens: int, prompt: int = 100, python: str = sys.executable
) -> Row:
    prompts = make_prompts(models, rows, prompt)
    return _decode(f"{rows} × ({prompt} + {tokens})", precision, other, models / "student", prompts, tokens, python)


def decode_quickstart(models: Path) -> Row:
    """A model of 0.65M parameters: what is left is overhead."""
    model, prompts = make_quickstart(models)
    return _decode("quickstart, 32 × (10 + 340)", "fp32", "generate", model, prompts, 340)


def _decode(
    name: str, precision: str, other: str, model: Path, prompts: Path, tokens: int, python: str = sys.executable
) -> Row:
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    case = {"model": str(model), "prompts": str(prompts), "tokens": tokens, "dtype": dtype}
    theirs = Side(f"{other}_decode", case, python)
    return Row(f"decoding, {name}, {precision}: {other}", _side("hopd_decode", case), theirs, same_tokens)


def _side(name: str, case: dict[str, Any]) -> Side:
    return Side(name, case)
