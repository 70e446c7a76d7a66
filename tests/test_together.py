"""Several processes stop together: told to, or because the teacher of one of them is gone."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopd.run import checkpoint
from tests.teacher.scripted import Scripted, after_steps
from tests.test_processes import LOSS_TOLERANCE, RECIPE, deviation, launched, lines
from tests.test_processes import run as run_to_the_end

SERVED = ("teacher={server: %s, model: tiny, deadline: 0}", "objective.estimator=sampled")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(output=tmp_path))
    return path


@pytest.fixture
def server() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.end()


def program(recipe: Path, *changes: str) -> list[str]:
    return ["-m", "hopd", "train", str(recipe), "--resume", *(f"--set={change}" for change in changes)]


def two(recipe: Path, *changes: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        launched(2, program(recipe, *changes)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )


def saved(run: Path) -> list[int]:
    return [found.step for found in checkpoint.find(run / "checkpoints")]


def test_a_signal_to_torchrun_saves_one_step_of_all(recipe: Path) -> None:
    processes = two(recipe, "training.steps=100000", "checkpoint.every=100000")
    after_steps(recipe.parent / "run", 3, lambda: processes.send_signal(signal.SIGTERM)).join()
    _, err = processes.communicate(timeout=120)
    assert err.count("hopd: SIGTERM: saved; continue with --resume") == 2, err
    assert saved(recipe.parent / "run") == [len(lines(recipe.parent / "run"))]


def test_where_one_process_has_no_teacher_all_save_and_stop(recipe: Path, server: Scripted) -> None:
    """One request of one process fails, and none may be repeated."""
    changes = (SERVED[0] % server.url, SERVED[1], "checkpoint.every=100")
    processes = two(recipe, *changes)
    after_steps(recipe.parent / "run", 2, lambda: server.tell("faults", ["server_error"]))
    _, err = processes.communicate(timeout=120)
    assert processes.returncode == 1  # torchrun's, whatever hopd's is
    assert "hopd: the teacher tiny has not scored: 1 attempts failed" in err
    assert "hopd: process 0: the teacher tiny has not scored" in err or "hopd: process 1: the teacher tiny" in err
    stopped = lines(recipe.parent / "run")
    assert saved(recipe.parent / "run") == [len(stopped)]
    run_to_the_end(launched(1, program(recipe, *changes)))

    whole = recipe.parent / "whole"
    run_to_the_end(launched(1, program(recipe, *changes, "name=whole")))
    assert deviation(whole, recipe.parent / "run") < LOSS_TOLERANCE
