"""What a user does, by `python -m hopd`, with the quickstart's models; FSDP2 with one rank; and the tests on a GPU.

The processes run at once: together they take as long as the longest.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.place import Place
from benchmarks.gpu.record import Record

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "quickstart.yaml"
LIMIT = 150.0  # seconds of one process
# Tests of what touches a device; those with several processes are not for one GPU.
TESTS = ["assembly", "compute", "evaluation", "model", "objective", "rollout", "run", "teacher", "training"]


def run(place: Place, record: Record) -> None:
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(6) as pool:
        runs = Path(directory)
        chains = [
            partial(_check, record, runs),
            partial(_train, record, runs),
            partial(_others, record, runs),
            partial(_sharded, record, place),
        ]
        if not place.tiny:
            chains.append(partial(_tests, record))
        for done in [pool.submit(chain) for chain in chains]:
            done.result()


def _check(record: Record, runs: Path) -> None:
    for precision in ("fp32", "bf16"):
        settings = [f"training.precision={precision}", f"name=check-{precision}"]
        _hopd(record, f"check, {precision}", runs, "check", RECIPE, settings=settings)


def _train(record: Record, runs: Path) -> None:
    _hopd(record, "train", runs, "train", RECIPE, settings=["training.steps=4", "checkpoint.every=2"])
    _hopd(record, "train --resume", runs, "train", RECIPE, "--resume", settings=["training.steps=6"])
    _hopd(record, "eval", runs, "eval", runs / "quickstart/checkpoints/step-000006", RECIPE)


def _others(record: Record, runs: Path) -> None:
    _hopd(record, "train, LoRA", runs, "train", RECIPE, settings=["training.steps=2", "lora={rank: 4}", "name=lora"])
    _hopd(record, "plan", runs, "plan", RECIPE, "--budget", "5", settings=["name=plan"])
    _hopd(record, "probe", runs, "probe", RECIPE, "--prompts", "8", "--out", runs / "probe")


def _hopd(record: Record, name: str, runs: Path, *arguments: object, settings: Sequence[str] = ()) -> None:
    common = [f"output={runs}", "evaluation.at_start=false", "evaluation.task.size=32", "rollout.full_tokens=128"]
    changes = [part for setting in (*common, *settings) for part in ("--set", setting)]
    _process(record, f"hopd {name}", ["-m", "hopd", *map(str, arguments), *changes])


def _sharded(record: Record, place: Place) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    _process(record, "FSDP2, one rank", [*launcher, "-m", "benchmarks.gpu.sharded", place.device.type])


def _tests(record: Record) -> None:
    paths = [str(path) for name in TESTS if (path := ROOT / "tests" / name).exists()]
    spread = ["-n", "10"] if find_spec("xdist") else []
    marks = ["-m", "not smollm2 and not vllm"]
    _process(
        record,
        "tests",
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", *spread, *marks, *paths],
        lambda output: output[output.rfind("short test summary") :],
    )


def _process(
    record: Record, name: str, arguments: Sequence[str], kept: Callable[[str], str] = lambda output: output[-400:]
) -> None:
    """Records the exit code, and the end of what the process said where that is not 0."""
    started = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=LIMIT, cwd=ROOT, env=environment
        )
        code, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        code, output = -1, f"not done after {LIMIT:g} s"
    said = {"output": kept(output)} if code else {}
    record.add("command line", name=name, code=code, seconds=time.perf_counter() - started, **said)
