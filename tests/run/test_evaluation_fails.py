"""Whatever happens in an evaluation, the complete steps are saved; a score that is no number is never the best."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from hopd import Distiller, Recipe
from hopd.run import checkpoint

TASK = """
import os, time
from pathlib import Path
from hopd.tasks import RepeatedAddition

class Broken(RepeatedAddition):
    def __init__(self, how: str):
        super().__init__(1, 8, 0, True)
        self.how, self.calls = how, 0

    def score(self, problem, response):
        self.calls += 1
        evaluation = (self.calls - 2) // 12  # one call at the start; 8 problems and 4 samples
        if self.how == "nan":
            return [0.5, float("nan"), 0.25][max(0, evaluation)]
        if evaluation == 1 and os.environ.get("MENDED") != "yes":
            if self.how == "raises":
                raise KeyError("boxed")
            if self.how == "hangs":
                time.sleep(1000)
            os.kill(os.getpid(), 9)
        return 0.5
"""


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Settings of a run whose second evaluation, after two of four steps, fails in a way."""
    (tmp_path / "broken_task.py").write_text(TASK)
    monkeypatch.syspath_prepend(str(tmp_path))

    def settings(how):
        task = f"evaluation={{task: {{source: 'broken_task:Broken', how: {how}}}, every: 2}}"
        return [task, "training.steps=4", "checkpoint.every=50"]

    return settings


def steps_saved(tmp_path):
    return [found.step for found in checkpoint.find(tmp_path / "runs" / "tiny" / "checkpoints")]


@pytest.mark.parametrize("how", ["raises", "is killed", "hangs"])
def test_an_evaluation_that_fails_costs_no_step_and_the_run_goes_on_to_the_same_bits(
    command, tiny, tmp_path, broken, monkeypatch, how
):
    arguments = ["train", tiny, *(f"--set={setting}" for setting in broken(how))]
    program = [sys.executable, "-m", "hopd", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=environment) as child:
        if how == "hangs":
            while child.poll() is None and steps_saved(tmp_path) != [2]:
                time.sleep(0.05)
            child.send_signal(signal.SIGKILL)
        child.communicate()
    assert child.returncode == (1 if how == "raises" else -signal.SIGKILL)
    assert steps_saved(tmp_path) == [2]

    monkeypatch.setenv("MENDED", "yes")
    resumed = command("train", tiny, "--resume")
    assert resumed.code == 0, resumed.err
    assert "settings of the run so far: evaluation=" in resumed.out
    assert command(*arguments, f"--set=output={tmp_path / 'whole'}").code == 0
    runs = [tmp_path / "runs" / "tiny", tmp_path / "whole" / "tiny"]
    saved, expected = (load_file(run / "checkpoints" / "step-000004" / "model.safetensors") for run in runs)
    assert all(saved[name].equal(expected[name]) for name in expected)
    for name in ("evaluations", "scores", "metrics"):
        lines, expected = ([json.loads(line) for line in (run / f"{name}.jsonl").open()] for run in runs)
        assert len(lines) == len(expected)
    assert [line.get("accuracy") for line in lines] == [None, 0.5, None, 0.5]


def test_a_score_that_is_no_number_is_null_and_never_the_best(tiny, tmp_path, broken):
    best = ["checkpoint={every: 50, keep_last: 1, keep_best: true}", "evaluation.at_start=false"]
    settings = [*broken("nan"), *best, "training.steps=6"]
    Distiller.of(Recipe.load(tiny, settings)).train()
    assert steps_saved(tmp_path) == [2, 6]
    run = tmp_path / "runs" / "tiny"
    assert not [path for path in run.rglob("*.json*") if "NaN" in path.read_text()]
    scores = [json.loads(line)["score"] for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert scores == [0.5, None, 0.25]
