"""Hands metrics to trackers (trackio, wandb, tensorboard), and never lets one of them stop or hold up a run."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from hopd.errors import RecipeError, described
from hopd.run.files import json_text, write_atomically
from hopd.run.tracking import open_tracker

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX")}  # either; of others, the package has the tracker's name
PATIENCE = 60.0  # seconds that a tracker has at the end for what it was given
SCORE = "evaluation/score"

Point = tuple[int, Mapping[str, Any]]


class Trackers:
    """Opens the trackers of these names, whose packages `check_trackers` has found. Each works in a thread of its own:
    one that raises or hangs is told of once, by `note`, and the run goes on without it."""

    def __init__(self, names: Sequence[str], directory: Path, note: Callable[[str], None], patience: float = PATIENCE):
        self.names, self.directory, self.note, self.patience = names, directory, note, patience
        self.workers: list[Worker] = []

    def open(self, name: str, recipe: str, steps: Iterable[Point], scores: Iterable[Point]) -> None:
        """Opens the run `name`, or goes on with it, with its resolved `recipe` as its configuration; hands over those
        of the steps and scores so far that a tracker has not had."""
        self.workers = [Worker(tracker, self.directory, name, recipe) for tracker in self.names]
        points = [(step, "steps", values) for step, values in steps]
        points += [(step, "scores", values) for step, values in scores]
        for step, kind, values in sorted(points, key=lambda point: point[0]):
            self._log(kind, step, values)

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """Hands over the numbers of a complete step."""
        self._log("steps", step, values)

    def score(self, step: int, score: float) -> None:
        """Hands over the score of an evaluation."""
        self._log("scores", step, {SCORE: score})

    def close(self) -> None:
        """Waits until the trackers have taken what they were given, but not for long."""
        for worker in self.workers:
            worker.queue.put(None)
        for worker in self.workers:
            worker.thread.join(self.patience)
            if worker.thread.is_alive() and not worker.told:
                self.note(f"the tracker {worker.tracker} does not answer: it may lack steps, metrics.jsonl has them")
        self._tell()
        self.workers = []

    def _log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        self._tell()
        for worker in self.workers:
            worker.queue.put((kind, step, numbers(values)))

    def _tell(self) -> None:
        for worker in self.workers:
            if worker.failure is not None and not worker.told:
                worker.told = True
                self.note(
                    f"the tracker {worker.tracker} failed ({described(worker.failure)}): the run goes on without it, "
                    "and metrics.jsonl has every step"
                )


class Worker:
    """Serves one tracker in a daemon's thread, and remembers in `tracker-NAME.json` what it has handed over."""

    def __init__(self, tracker: str, directory: Path, name: str, recipe: str):
        self.tracker, self.directory, self.name, self.recipe = tracker, directory, name, recipe
        self.memory = directory / f"tracker-{tracker}.json"
        self.queue: SimpleQueue[tuple[str, int, Mapping[str, float]] | None] = SimpleQueue()
        self.failure: BaseException | None = None
        self.told = False
        self.thread = Thread(target=self._work, name=f"tracker {tracker}", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            known = json.loads(self.memory.read_text(encoding="utf-8")) if self.memory.exists() else {}
            had = {"steps": known.get("steps", -1), "scores": known.get("scores", -1)}
            opened = open_tracker(self.tracker, self.name, self.directory, self.recipe, known.get("id"))
            while (point := self.queue.get()) is not None:
                kind, step, values = point
                if step > had[kind]:
                    opened.log(values, step)
                    had[kind] = step
                    write_atomically(self.memory, json_text({"id": opened.id, **had}))
            opened.finish()
        except BaseException as error:  # of a library that hopd does not know, SystemExit among them
            self.failure = error


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the values that a tracker can draw."""
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def check_trackers(names: Sequence[str]) -> None:
    """Raises `RecipeError` for a tracker whose package is not installed."""
    for name in names:
        if not any(find_spec(package) for package in PACKAGES.get(name, (name,))):
            raise RecipeError(f"trackers: {name} is not installed: pip install 'hopd[{name}]'")
