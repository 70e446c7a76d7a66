"""Rollouts in flight survive: a run that is killed or told to stop resumes to the same bits."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from hopd.distiller import Distiller
from hopd.errors import Interrupted
from hopd.recipe import Recipe
from hopd.rollout import NativeEngine
from hopd.run import checkpoint
from hopd.run.progress import Progress
from tests.run.test_resume import context

STEPS = 8
KEYS = ["kept", "refreshed"]


def recipe(output: Path, keys: str = "kept", **changes: Any) -> Recipe:
    """Makes a run of 8 steps with checkpoints after 3 and 6. Two rollouts end in a step, and up to 8 are in flight."""
    content = {
        "name": "run",
        "output": str(output),
        "seed": 3,
        "student": {"model": "package:hopd/quickstart/student"},
        "teacher": {"model": "package:hopd/quickstart/teacher"},
        "task": {"source": "addition", "steps": 3, "size": 40},
        "rollout": {"prompts": 4, "samples": 2, "full_tokens": 40, "engine": {"kind": "native", "keys": keys}},
        "horizon": {"controller": "truncated", "tokens": 10, "continue": True},
        "training": {"steps": STEPS, "learning_rate": 1e-3, "schedule": "cosine"},
        "checkpoint": {"every": 3, "keep_last": 9},
    }
    return Recipe.parse(content | changes)


def distil(made: Recipe) -> None:
    Distiller.of(made, resume=True, progress=Progress(quiet=True)).train()


def outcome(output: Path) -> tuple[Any, ...]:
    """Returns everything that must be the same, to the bit."""
    run, last = output / "run", output / "run" / "checkpoints" / f"step-{STEPS:06d}"
    files = {file: (last / file).read_bytes() for file in ("model.safetensors", "optimizer.safetensors")}
    flight = last / "flight.safetensors"
    state = json.loads((last / "state.json").read_text())
    lines = [
        {key: value for key, value in json.loads(line).items() if "seconds" not in key and key != "peak_memory"}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    ledger = {key: value for key, value in state["ledger"].items() if key != "seconds"}
    return lines, ledger, state["flight"], flight.exists() and flight.read_bytes(), files


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ...]]:
    outputs = {keys: tmp_path_factory.mktemp(keys) for keys in KEYS}
    for keys, output in outputs.items():
        distil(recipe(output, keys))
    return {keys: outcome(output) for keys, output in outputs.items()}


def test_rollouts_in_flight_are_saved_with_what_they_need(uninterrupted, tmp_path):
    for keys in KEYS:
        (tmp_path / keys).write_bytes(uninterrupted[keys][3])
        saved = load_file(tmp_path / keys)
        names = {"described", "ids", "log_probs", "ages"} | ({"cache"} if keys == "kept" else set())
        assert {key.split(".")[1] for key in saved} == names
        assert 0 < len(saved) / len(names) <= 8
    assert uninterrupted["kept"][0][-1]["loss"] != uninterrupted["refreshed"][0][-1]["loss"]  # keys do get old
    assert uninterrupted["kept"][1] != uninterrupted["refreshed"][1]  # reading a prefix again costs


@pytest.mark.parametrize("keys", KEYS)
def test_killed_it_resumes_to_the_same_bits(uninterrupted, tmp_path, keys):
    """It is killed a step or more behind a checkpoint."""
    made, metrics = recipe(tmp_path, keys), tmp_path / "run" / "metrics.jsonl"
    process = context.Process(target=distil, args=(made,))
    process.start()
    while process.is_alive() and not (metrics.exists() and metrics.read_text().count("\n") >= 4):
        time.sleep(0.001)
    process.kill()
    process.join()
    assert {found.step for found in checkpoint.find(tmp_path / "run" / "checkpoints")} >= {3}
    distil(made)
    assert outcome(tmp_path) == uninterrupted[keys]


class Told(NativeEngine):
    """Is told to stop while it extends the rollouts of the step after the fourth."""

    calls = 0

    def extend(self, *asked: Any) -> Any:
        self.calls += 1
        if self.calls == 5:
            signal.raise_signal(signal.SIGTERM)
        return super().extend(*asked)


@pytest.mark.parametrize("keys", KEYS)
def test_told_to_stop_where_no_checkpoint_is_due_it_resumes_to_the_same_bits(uninterrupted, tmp_path, keys):
    run = Distiller.of(recipe(tmp_path, keys), progress=Progress(quiet=True))
    run.parts.engine = Told(run.parts.student, keeps=keys == "kept")
    with pytest.raises(Interrupted):
        run.train()
    assert [found.step for found in checkpoint.find(run.parts.directory.checkpoints)] == [3, 4]
    distil(recipe(tmp_path, keys))
    assert outcome(tmp_path) == uninterrupted[keys]


def test_a_checkpoint_of_before_resumes_and_draws_the_same_prompts(tmp_path):
    """Version 0.2 knew neither rollouts in flight nor what a recipe says of them."""
    before: dict[str, Any] = {"horizon": {"controller": "progressive", "start": 5, "increment": 2}}
    distil(recipe(tmp_path, **before))
    expected, run = outcome(tmp_path), tmp_path / "run"
    for found in checkpoint.find(run / "checkpoints"):
        assert not (found.path / "flight.safetensors").exists()
        if found.step > 3:
            checkpoint.remove(found)
            continue
        state = found.state
        assert state.pop("flight") == {"started": 3 * 8, "opened": 0}
        (found.path / "state.json").write_text(json.dumps(state))
    written = yaml.safe_load((run / "recipe.yaml").read_text())
    for key in ("rollouts", "whole", "continue"):
        del written["horizon"][key]
    del written["rollout"]["engine"]["keys"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(written))
    distil(recipe(tmp_path, **before))
    assert outcome(tmp_path) == expected
