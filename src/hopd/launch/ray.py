"""The loop on workers that Ray Train places, and starts again when one is lost.

It knows nothing of a step: each worker makes the `Distiller` that a process of torchrun would make, and workers that
were started again go on from the run's last checkpoint.
"""

import io
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import yaml
from rich.console import Console

from hopd.build import build
from hopd.distiller import Distiller
from hopd.errors import HopdError, Interrupted, RecipeError, WorkersLost
from hopd.forecast.preflight import preflight
from hopd.launch.board import Board, lost, reporter
from hopd.recipe import Recipe
from hopd.run.directory import RunDirectory
from hopd.run.interruption import Interruption
from hopd.run.progress import Progress
from hopd.run.trackers import check_trackers

POLL_SECONDS = 0.5


def train_on_ray(recipe: Recipe, workers: int, restarts: int, resume: bool) -> int:
    """Trains on so many workers, one GPU each where Ray has GPUs, and gives the number of complete steps. The preflight
    runs on the first workers, not on those of a restart.

    The cluster is the one that RAY_ADDRESS names, or else a Ray that is started here and ends with the run. Raises what
    a worker raised if it is a `HopdError`; `WorkersLost` after more than `restarts` restarts; `Interrupted` once the
    complete steps have been saved.
    """
    check_trackers(recipe.trackers)
    RunDirectory(recipe.directory).latest_checkpoint(recipe, resume)  # for its errors: workers resume in any case
    with _ray(workers) as ray, tempfile.TemporaryDirectory() as place, Interruption(together=True) as interruption:
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        board = ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()
        ended: list[Any] = []
        trainer = _trainer(ray, board, recipe, workers, restarts, place)
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
                f"{gone}, once more than --ray-restarts {restarts} allows; checkpoints are whole: go on with --resume"
            ) from None
        raise result
    if result is None:
        raise Interrupted(interruption.signal or 0)
    return int(result)


def _work(given: dict[str, Any]) -> int | None:
    """What a worker does: complete steps of the run, or None if it was told to stop."""
    import ray
    import ray.train

    board, first = given["board"], ray.train.get_context().get_world_rank() == 0
    starts = ray.get(board.start.remote(ray.train.get_context().get_world_rank()))
    if starts is None:
        return None
    sys.argv = given["command"]  # for environment.json
    try:
        _go_to(given["directory"])
        recipe = Recipe.parse(yaml.safe_load(given["recipe"]))
        console = Console(file=_Lines(board), highlight=False) if first else None
        progress = Progress(quiet=not first, console=console)
        parts = build(recipe, resume=True, progress=progress)
        with _listening(board, parts.interruption):
            if starts:
                progress.note(f"ray: the workers were started again ({starts} of {given['restarts']})")
            else:
                for line in preflight(parts):
                    progress.note(line)
            return Distiller(parts).train().steps
    except Interrupted:
        return None
    except HopdError as error:
        ray.get(board.fail.remote(error))
        raise  # the others may wait for this worker: Ray ends them


def _trainer(ray: Any, board: Any, recipe: Recipe, workers: int, restarts: int, place: str) -> Any:
    train = ray.train
    given = {
        "board": board,
        "recipe": recipe.yaml(),
        "directory": str(Path.cwd()),
        "command": sys.argv,
        "restarts": restarts,
    }
    return train.torch.TorchTrainer(
        _work,
        train_loop_config=given,
        scaling_config=train.ScalingConfig(num_workers=workers, use_gpu="GPU" in ray.cluster_resources()),
        run_config=train.RunConfig(
            name=recipe.name,
            storage_path=place,  # of Ray's own bookkeeping: checkpoints are the run's
            failure_config=train.FailureConfig(max_failures=restarts),
            callbacks=[reporter(board)],
            logging_config=train.LoggingConfig(log_level="CRITICAL"),
        ),
    )


def _fit(trainer: Any) -> Any:
    """What the first worker gave, or the exception."""
    try:
        return trainer.fit().return_value
    except Exception as error:
        return error


@contextmanager
def _ray(workers: int) -> Iterator[Any]:
    """Ray, connected and quiet; of a Ray that was started here nothing is left afterwards."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # A Ray listens on all interfaces and runs what it is told: this one, only by who knows the token.
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
            f"no Ray answers at RAY_ADDRESS={address} ({str(error).splitlines()[0]}); if it wants a token, set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here too"
        ) from None
    try:
        has = ray.cluster_resources()
        unit = "GPU" if "GPU" in has else "CPU"
        if has[unit] < workers:
            what = f"--ray {workers} needs as many {unit}s, and Ray has {has[unit]:g}"
            if not address:
                raise RecipeError(f"{what}; write --ray {has[unit]:g}, or RAY_ADDRESS for a cluster")
            print(f"ray: {what}: waiting for more", flush=True)
        yield ray
    finally:
        ray.shutdown()


def _go_to(directory: str) -> None:
    """Ray starts workers in a directory of its own; paths of a recipe are meant from where hopd was started."""
    try:
        os.chdir(directory)
    except OSError as error:
        raise RecipeError(
            f"a node of the cluster cannot go to {directory} ({error.strerror}): start hopd in a directory that all "
            "nodes share"
        ) from None


@contextmanager
def _listening(board: Any, interruption: Interruption) -> Iterator[None]:
    """Inside, a signal that the command line got reaches this worker."""
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
    """A file whose lines the command line prints."""

    def __init__(self, board: Any):
        super().__init__()
        self.board = board

    def write(self, text: str) -> int:
        import ray

        ray.get(self.board.write.remote(text))
        return len(text)
