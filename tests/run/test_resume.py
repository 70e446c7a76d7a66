"""Killed anywhere, a run resumes to the same bits."""

import json
import multiprocessing
import os
import random
import shutil
import time

import pytest

from hopd.recipe import Recipe

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["hopd.distiller", "hopd.quickstart", "transformers.models.llama"])

STEPS = 12


def recipe(output, name="run"):
    return Recipe.parse(
        {
            "name": name,
            "output": str(output),
            "seed": 3,
            "student": {"model": "package:hopd/quickstart/student"},
            "teacher": {"model": "package:hopd/quickstart/teacher"},
            "task": {"source": "addition", "steps": 3, "size": 40},
            "rollout": {"prompts": 8, "full_tokens": 100},
            "horizon": {"controller": "progressive", "start": 8, "increment": 3},
            "training": {"steps": STEPS, "learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 3, "ema": 0.8},
            "evaluation": {"task": {"source": "addition", "steps": 2, "size": 4, "held_out": True}, "every": 5},
            "checkpoint": {"every": 2, "keep_last": 2, "keep_best": True},
        }
    )


def distil(output):
    import torch

    from hopd.distiller import Distiller
    from hopd.run.progress import Progress

    torch.set_num_threads(1)
    Distiller.of(recipe(output), resume=True, progress=Progress(quiet=True)).train()


def start(output):
    process = context.Process(target=distil, args=(output,))
    process.start()
    return process


def finish(output):
    process = start(output)
    process.join(120)
    assert process.exitcode == 0


def outcome(output):
    """Everything that must be the same, to the bit; seconds and memory are not."""
    run = output / "run"
    last = run / "checkpoints" / f"step-{STEPS:06d}"
    lines = {}
    for name in ("metrics", "horizon", "evaluations", "scores", "samples"):
        rows = [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
        lines[name] = [{k: v for k, v in row.items() if "seconds" not in k and k != "peak_memory"} for row in rows]
    ledger = json.loads((run / "ledger.json").read_text())["run"]
    del ledger["seconds"]
    files = ("model.safetensors", "optimizer.safetensors", "average/model.safetensors")
    weights = {file: (last / file).read_bytes() for file in files}
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    return weights, lines, ledger, kept


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    finish(output)
    started = time.perf_counter()
    shutil.rmtree(output / "run")
    finish(output)
    return outcome(output), time.perf_counter() - started


def check(output, expected):
    finish(output)
    weights, lines, ledger, kept = outcome(output)
    assert lines == expected[1]
    assert ledger == expected[2]
    assert kept == expected[3]
    assert weights == expected[0]


@pytest.mark.parametrize("moment", range(9))
def test_sigkill_at_a_random_moment(tmp_path, uninterrupted, moment):
    expected, seconds = uninterrupted
    delay = random.SystemRandom().uniform(0.1, 1.0) * seconds
    process = start(tmp_path)
    process.join(delay)
    process.kill()
    process.join()
    spent = ledger_of(tmp_path)
    check(tmp_path, expected)
    assert ledger_of(tmp_path) >= spent, f"the ledger went back after a kill at {delay:.2f} s"


def ledger_of(output):
    """All tokens that were ever generated, those of lost work included."""
    path = output / "run" / "ledger.json"
    return sum(account["generated_tokens"] for account in json.loads(path.read_text()).values()) if path.exists() else 0


def test_sigkill_while_a_checkpoint_is_written(tmp_path, uninterrupted):
    checkpoints = tmp_path / "run" / "checkpoints"
    for _ in range(20):
        kill_at_the_sight_of(checkpoints, start(tmp_path))
        if any(checkpoints.glob(".unfinished-*")):
            break
        if any(checkpoints.glob(f"step-{STEPS:06d}")):  # every kill came between two checkpoints: once more
            shutil.rmtree(tmp_path / "run")
    else:
        pytest.fail("no kill hit the middle of a checkpoint")
    check(tmp_path, uninterrupted[0])
    assert not list(checkpoints.glob(".*"))


def kill_at_the_sight_of(checkpoints, process):
    """Kills the process while a checkpoint is under way, and an earlier one exists."""
    while process.is_alive():
        names = os.listdir(checkpoints) if checkpoints.exists() else []
        if any(n.startswith(".unfinished") for n in names) and any(n.startswith("step") for n in names):
            process.kill()
    process.join()
