"""Training on a real local Ray with two workers, and what happens when one of them dies."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.teacher.scripted import KEY, Scripted, after_steps
from tests.test_processes import RECIPE, STEPS, check_same, lines, one, train
from tests.test_together import server

__all__ = ["one", "server", "train"]  # fixtures

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'hopd[ray]'")

MARK = "HOPD_TEST_RAY"
# Starts a Ray for several commands, until standard input is closed; prints its address and the directory of its files.
CLUSTER = """
import ray, sys
info = ray.init(address="local", num_cpus=2, include_dashboard=False).address_info
print(info["gcs_address"], info["session_dir"], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(output=tmp_path))
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Starts a Ray and returns the environment variables that connect a command to it."""
    mine = {MARK: f"cluster of {os.getpid()}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | mine | {"RAY_USAGE_STATS_ENABLED": "0", "HOPD_TEST_KEY": KEY},
    )
    assert process.stdin
    assert process.stdout
    address, session = process.stdout.readline().split()
    yield mine | {"RAY_ADDRESS": address, "SESSION": session}
    process.stdin.close()
    process.wait()
    process.stdout.close()


class Command:
    """Runs `hopd train RECIPE --ray …` in a separate process."""

    def __init__(self, recipe: Path, *arguments: str, variables: dict[str, str] | None = None):
        self.mark = (variables or {}).get(MARK, f"{os.getpid()}, {recipe}")
        self.metrics = recipe.parent / "run" / "metrics.jsonl"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hopd", "train", recipe, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=recipe.parent,
            env=os.environ | {MARK: self.mark} | (variables or {}),
        )

    def wait_for(self, steps: int) -> None:
        while self.process.poll() is None and not (
            self.metrics.exists() and self.metrics.read_text().count("\n") >= steps
        ):
            time.sleep(0.02)

    def workers(self) -> list[int]:
        """Returns the process ids of the workers that train."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                title, variables = ((place / name).read_bytes() for name in ("cmdline", "environ"))
            except OSError:  # the process has ended, or belongs to another user
                continue
            if b"TrainWorker" in title and f"{MARK}={self.mark}".encode() in variables:
                found.append(int(place.name))
        return sorted(found)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=300)
        return self.process.returncode, out, err


def test_workers_train_like_processes_and_one_that_is_killed_leaves_no_trace(
    train: Callable[..., Path], one: Path, recipe: Path
) -> None:
    command = Command(recipe, "--ray", "2")
    command.wait_for(STEPS // 2)
    first, second = command.workers()
    os.kill(second, signal.SIGKILL)
    code, out, err = command.end()
    assert code == 0, err
    assert "ray: worker 1 was lost" in out or "ray: worker 0 was lost" in out
    assert "ray: the workers were restarted (1 of 3)" in out
    assert out.count("self-test:") == 1  # the preflight
    assert out.endswith(f"done: {STEPS} steps, {recipe.parent}/run/\n")
    assert not err
    assert first not in command.workers()

    mine = recipe.parent / "run"
    check_same(one, mine)
    two = train(2)
    for name in ("model", "optimizer"):
        place = Path("checkpoints") / f"step-{STEPS:06d}" / f"{name}.safetensors"
        assert (mine / place).read_bytes() == (two / place).read_bytes()
    assert [line["loss"] for line in lines(mine)] == [line["loss"] for line in lines(two)]
    environment = json.loads((mine / "environment.json").read_text())
    assert environment["processes"] == 2
    assert environment["command"][1:] == ["train", str(recipe), "--ray", "2"]


def test_a_worker_that_is_lost_too_often_ends_the_run_with_3_and_a_signal_saves_it(
    cluster: dict[str, str], recipe: Path
) -> None:
    long = ("--ray", "2", "--set=training.steps=100000", "--set=checkpoint.every=2")
    command = Command(recipe, *long, "--ray-restarts", "0", variables=cluster)
    command.wait_for(3)
    os.kill(command.workers()[-1], signal.SIGKILL)
    code, _, err = command.end()
    assert code == 3, err
    assert "was lost, once more than --ray-restarts 0 allows" in err
    assert len(err.splitlines()) == 1
    done = len(lines(recipe.parent / "run"))

    command = Command(recipe, *long, "--resume", variables=cluster)
    command.wait_for(done + 2)
    command.process.send_signal(signal.SIGTERM)
    code, out, err = command.end()
    assert code == 128 + signal.SIGTERM
    assert err == "hopd: SIGTERM: saved; continue with --resume\n"
    assert "run: resumed after step" in out
    complete = [line["step"] for line in lines(recipe.parent / "run")]
    assert complete == list(range(1, len(complete) + 1))
    assert (recipe.parent / "run" / "checkpoints" / f"step-{complete[-1]:06d}").is_dir()


def test_a_teacher_that_is_gone_ends_the_run_with_3_and_no_restart(
    cluster: dict[str, str], server: Scripted, recipe: Path
) -> None:
    """Fails one request of one worker. Ray ends all workers once one has ended: the first must have saved by then."""
    remote = f"teacher={{server: {server.url}, model: tiny, deadline: 0, api_key_env: HOPD_TEST_KEY}}"
    changes = (f"--set={change}" for change in (remote, "objective.estimator=sampled", "training.steps=100000"))
    command = Command(recipe, "--ray", "2", "--set=checkpoint.every=100000", *changes, variables=cluster)
    run = recipe.parent / "run"
    after_steps(run, 2, lambda: server.tell("faults", ["server_error"]))
    code, out, err = command.end()
    assert code == 3, err
    assert err.startswith("hopd: ")  # of either worker: both know it
    assert "the teacher tiny has not scored: 1 attempts failed" in err
    assert len(err.splitlines()) == 1
    assert out.count("self-test:") == 1
    assert "restarted" not in out
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{len(lines(run)):06d}"]
    assert {keyed for _, _, keyed in server.log()} == {True}
    places = [run, Path(cluster["SESSION"])]
    written = "".join(
        file.read_text(errors="replace") for place in places for file in place.rglob("*") if file.is_file()
    )
    assert "HOPD_TEST_KEY" in written
    assert KEY not in written + out + err


def test_a_run_that_cannot_start_is_refused_without_ray(recipe: Path) -> None:
    (recipe.parent / "run").mkdir()
    (recipe.parent / "run" / "recipe.yaml").touch()
    code, _, err = Command(recipe, "--ray", "2").end()
    assert code == 2
    assert err.startswith(f"hopd: {recipe.parent / 'run'} holds another run")


def test_without_ray_the_error_says_what_to_install(recipe: Path) -> None:
    without = "import sys; sys.modules['ray'] = None; from hopd.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", without, "train", recipe, "--ray", "2"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.endswith("pip install 'hopd[ray]'\n")
    assert len(ended.stderr.splitlines()) == 1
