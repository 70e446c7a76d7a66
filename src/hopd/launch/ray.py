"""Trains on workers that Ray Train places, and restarts when one is lost.

It knows nothing of a step: each worker builds the `Distiller` that a torchrun process would build, and restarted
workers resume from the run's last checkpoint.
"""

import io
import logging
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import yaml
from rich.console import Console

from hopd.assembly import build
from hopd.distiller import Distiller
from hopd.errors import HopdError, Interrupted, RecipeError, WorkersLost
from hopd.forecast.preflight import preflight
from hopd.launch.board import Board, lost, reporter
from hopd.processes import LONGEST_WAIT, Processes
from hopd.recipe import Recipe
from hopd.run.directory import RunDirectory
from hopd.run.interruption import Interruption
from hopd.run.lock import locked
from hopd.run.progress import Progress
from hopd.run.trackers import check_trackers

POLL_SECONDS = 0.5


def train_on_ray(recipe: Recipe, workers: int, restarts: int, resume: bool, **given: Any) -> int:
    """Trains on `workers` workers, with one GPU each if Ray has GPUs, and returns the number of complete steps.

    The cluster is the one at RAY_ADDRESS, or a local Ray that is started here and ends with the run. The preflight runs
    at the first start, not after a restart. `given` goes to `build`. Raises a worker's `HopdError`; `WorkersLost` after
    more than `restarts` restarts; `Interrupted` once the complete steps have been saved.
    """
    check_trackers(recipe.trackers)
    RunDirectory(recipe.directory).latest_checkpoint(
        recipe, resume
    )  # raises now if the run cannot start; workers always resume
    with _ray(workers) as ray, tempfile.TemporaryDirectory() as place, Interruption(together=True) as interruption:
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        board = ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()
        ended: list[Any] = []
        trainer = _trainer(ray, board, recipe, workers, restarts, place, given)
        fitting = Thread(target=lambda: ended.append(_fit(trainer)), daemon=True)
        fitting.start()
        while fitting.is_alive():
            fitting.join(POLL_SECONDS)
            started, text = ray.get(board.read.remote(interruption.signal))
            print(text, end="", flush=True)
            if interruption.signal and not started:
                raise Interrupted(interruption.signal)
        _, text = ray.get(board.read.remote(None))
        print(text, end="", flush=True)
        if errors := ray.get(board.errors.remote()):
            raise errors[0]
        (result,) = ended
    if isinstance(result, Exception):
        if gone := lost(getattr(result, "worker_failures", {})):
            raise WorkersLost(
                f"{gone}, once more than --ray-restarts {restarts} allows; checkpoints are complete: "
                "continue with --resume"
            ) from None
        raise result
    if result is None:
        raise Interrupted(interruption.signal or signal.SIGTERM)
    return int(result)


def _work(given: dict[str, Any]) -> int | None:
    """Runs in a worker. Returns the complete steps of the run, or None if it was interrupted."""
    import ray
    import ray.train

    board, first = given["board"], ray.train.get_context().get_world_rank() == 0
    starts = ray.get(board.start.remote(ray.train.get_context().get_world_rank()))
    if starts is None:
        return None
    sys.argv = given["command"]  # for environment.json
    try:
        _change_directory(given["directory"])
        sys.path += [place for place in given["path"] if place not in sys.path]  # code of your own beside the recipe
        recipe = Recipe.parse(yaml.safe_load(given["recipe"]))
        console = Console(file=_Lines(board), highlight=False) if first else None
        progress = Progress(quiet=not first, console=console)
        with locked(RunDirectory(recipe.directory), Processes.start()) as notes:
            parts = build(recipe, resume=True, progress=progress, **given["build"])
            with _receiving_signals(board, parts.interruption):
                if starts:
                    progress.note(f"ray: the workers were restarted ({starts} of {given['restarts']})")
                else:
                    for line in (*notes, *preflight(parts)):
                        progress.note(line)
                return Distiller(parts).train().steps
    except Interrupted:
        return None
    except HopdError as error:
        ray.get(board.fail.remote(error))
        raise  # other workers may wait for this one, and Ray ends them


def _trainer(
    ray: Any, board: Any, recipe: Recipe, workers: int, restarts: int, place: str, given_to_build: dict[str, Any]
) -> Any:
    train = ray.train
    given = {
        "board": board,
        "recipe": recipe.yaml(),
        "directory": str(Path.cwd()),
        "command": sys.argv,
        "path": sys.path,
        "restarts": restarts,
        "build": given_to_build,
    }
    return train.torch.TorchTrainer(
        _work,
        torch_config=train.torch.TorchConfig(timeout_s=int(LONGEST_WAIT.total_seconds())),
        train_loop_config=given,
        scaling_config=train.ScalingConfig(num_workers=workers, use_gpu="GPU" in ray.cluster_resources()),
        run_config=train.RunConfig(
            name=recipe.name,
            storage_path=place,  # only for Ray's own bookkeeping: checkpoints are in the run's directory
            failure_config=train.FailureConfig(max_failures=restarts),
            callbacks=[reporter(board)],
            logging_config=train.LoggingConfig(log_level="CRITICAL"),
        ),
    )


def _fit(trainer: Any) -> Any:
    """Returns the first worker's result, or the exception."""
    try:
        return trainer.fit().return_value
    except Exception as error:
        return error


@contextmanager
def _ray(workers: int) -> Iterator[Any]:
    """Connects to Ray, quietly, and shuts down afterwards; a Ray that was started here leaves nothing behind.

    Raises `RecipeError` if Ray is not installed, does not answer, or is too small.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # Ray listens on all interfaces and runs any command: a token restricts this one to our own processes.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.train.torch
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise RecipeError(f"--ray needs the package ray ({error}): pip install 'hopd[ray]'") from None
    quiet: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            cores = max(workers, os.cpu_count() or 1)
            ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
    except ConnectionError as error:
        raise RecipeError(
            f"no Ray answers at RAY_ADDRESS={address} ({str(error).splitlines()[0]}); if it requires a token, set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here too"
        ) from None
    try:
        has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call, unused-ignore]
        unit = "GPU" if "GPU" in has else "CPU"
        if has[unit] < workers:
            what = f"--ray {workers} needs {workers} {unit}s, and Ray has {has[unit]:g}"
            if not address:
                raise RecipeError(f"{what}; write --ray {has[unit]:g}, or set RAY_ADDRESS to use a cluster")
            print(f"ray: {what}: waiting for more", flush=True)
        yield ray
    finally:
        ray.shutdown()


def _change_directory(directory: str) -> None:
    """Changes to the directory that hopd was started in: a recipe's paths are relative to it, and Ray's workers start
    elsewhere."""
    try:
        os.chdir(directory)
    except OSError as error:
        raise RecipeError(
            f"a node of the cluster cannot change to {directory} ({error.strerror}): start hopd in a directory that "
            "all nodes share"
        ) from None


@contextmanager
def _receiving_signals(board: Any, interruption: Interruption) -> Iterator[None]:
    """Forwards signals of the command line to this worker while the context lasts."""
    import ray

    done = Event()

    def listen() -> None:
        while not done.wait(POLL_SECONDS):
            if (signum := ray.get(board.signal.remote())) is not None:
                return interruption.tell(signum)

    Thread(target=listen, daemon=True).start()
    try:
        yield
    finally:
        done.set()


class _Lines(io.StringIO):
    """Is a file whose lines the command line prints."""

    def __init__(self, board: Any):
        super().__init__()
        self.board = board

    def write(self, text: str) -> int:
        import ray

        ray.get(self.board.write.remote(text))
        return len(text)
