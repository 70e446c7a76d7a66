"""Whatever happens in an evaluation, the complete steps are saved; a score that is no number is never the best."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
from safetensors.torch import load_file

from hopd import Distiller, Recipe
from hopd.run import checkpoint

EVALUATION = "evaluation={task: {source: addition, steps: 1, size: 8, held_out: true}, every: 2}"
SETTINGS = [EVALUATION, "training.steps=4", "checkpoint.every=50"]
FAILING = """
import os, sys, time
from hopd import Distiller, Recipe

_, how, path, *settings = sys.argv
run = Distiller.of(Recipe.load(path, settings), overrides=settings)
evaluate = run.parts.evaluator.run

def fail():
    if run.step < 2:
        return evaluate()
    if how == "raises":
        raise KeyError("boxed")
    if how == "hangs":
        time.sleep(1000)
    if how == "exits":
        sys.exit(1)
    os.kill(os.getpid(), 9)

run.parts.evaluator.run = fail
run.train()
"""


def steps_saved(tmp_path):
    return [found.step for found in checkpoint.find(tmp_path / "runs" / "tiny" / "checkpoints")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A function that trains the same run without a failure, once."""
    run = tmp_path_factory.mktemp("whole") / "tiny"

    def train(tiny):
        if not run.exists():
            Distiller.of(Recipe.load(tiny, [*SETTINGS, f"output={run.parent}"])).train()
        return run

    return train


@pytest.mark.parametrize("how", ["raises", "exits", "hangs", "is killed"])
def test_an_evaluation_that_fails_costs_no_step_and_the_run_goes_on_to_the_same_bits(
    command, tiny, tmp_path, whole, how
):
    program = [sys.executable, "-c", FAILING, how, str(tiny), *SETTINGS]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=os.environ) as child:
        while how == "hangs" and child.poll() is None and steps_saved(tmp_path) != [2]:
            time.sleep(0.05)
        if how == "hangs":
            child.send_signal(signal.SIGKILL)
        _, err = child.communicate()
    assert child.returncode == (1 if how in ("raises", "exits") else -signal.SIGKILL), err
    assert steps_saved(tmp_path) == [2]
    assert ("The 2 complete steps are saved: continue with --resume" in err) == (how == "raises")

    resumed = command("train", tiny, "--resume")
    assert resumed.code == 0, resumed.err
    assert "settings of the run so far: evaluation=" in resumed.out
    runs = [tmp_path / "runs" / "tiny", whole(tiny)]
    mine, theirs = (load_file(run / "checkpoints" / "step-000004" / "model.safetensors") for run in runs)
    assert all(mine[name].equal(theirs[name]) for name in theirs)
    for name in ("evaluations", "scores", "metrics"):
        lines, expected = (
            [json.loads(line) for line in (run / f"{name}.jsonl").read_bytes().splitlines()] for run in runs
        )
        assert [(line["step"], line.get("accuracy")) for line in lines] == [
            (line["step"], line.get("accuracy")) for line in expected
        ]
    assert [line.get("accuracy") is None for line in lines] == [True, False, True, False]


def test_a_score_that_is_no_number_is_null_and_never_the_best(tiny, tmp_path):
    best = ["checkpoint={every: 50, keep_last: 1, keep_best: true}", "evaluation.at_start=false", "training.steps=6"]
    run = Distiller.of(Recipe.load(tiny, [*SETTINGS, *best]))
    assert run.parts.evaluator is not None
    evaluate, scores = run.parts.evaluator.run, iter([0.5, float("nan"), 0.25])

    def scored():
        found: Any = evaluate()
        return replace(found, measure=replace(found.measure, accuracy=next(scores)))

    run.parts.evaluator.run = scored  # type: ignore[method-assign]
    run.train()
    assert steps_saved(tmp_path) == [2, 6]
    files = (tmp_path / "runs" / "tiny").rglob("*.json*")
    assert not [path for path in files if "NaN" in path.read_text()]
    lines = (tmp_path / "runs" / "tiny" / "evaluations.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["score"] for line in lines] == [0.5, None, 0.25]
