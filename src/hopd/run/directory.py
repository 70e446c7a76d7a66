"""Keeps the directory of a run: its recipe, its checkpoints, and lines of JSON that a resumed run rewinds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hopd.errors import RecipeError
from hopd.recipe import Recipe
from hopd.run.checkpoint import Checkpoint, clean, find
from hopd.run.environment import Environment
from hopd.run.files import append_line, change_lines, read_lines, write_atomically, written

LOCK = ".lock"  # the file that the process which trains holds
LINES = ("metrics", "horizon", "evaluations", "scores", "samples")
SCORES = ("accuracy", "score")  # of an evaluation, in the metrics of its step

# What a resumed run may change: its length, how it is watched, how work is divided in memory or over processes.
CHANGEABLE = (
    "training.steps",
    "training.epochs",
    "training.tokens_per_batch",
    "training.attention",
    "training.sharding",
    "rollout.rows",
    "rollout.mismatch_alarm",
    *(f"rollout.engine.{key}" for key in ("server", "api_key_env", "timeout", "deadline", "backoff", "concurrency")),
    *(f"rollout.engine.{key}" for key in ("weights", "directory", "memory", "sleep", "eager")),
    "output",
)
CHANGEABLE_SECTIONS = ("evaluation", "checkpoint", "trackers")


class RunDirectory:
    """Opens `runs/NAME/`. One that holds another run is an error, unless that is to be resumed."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.environment = Environment(path)

    def create(self, recipe: Recipe, step: int, overrides: Sequence[str], hashes: Mapping[str, Any]) -> None:
        """Writes the recipe and the environment of a run that starts, or goes on, after `step` complete steps.
        `overrides` are those of the command line. Raises `CheckpointError` if that fails."""
        write_atomically(self.path / "recipe.yaml", recipe.yaml())
        self.environment.start(step, overrides, hashes)

    def clean(self) -> None:
        """Makes the directory, and removes what interruptions left behind in it. Raises `CheckpointError` if that
        fails."""
        with written(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            clean(self.checkpoints)

    def latest_checkpoint(self, recipe: Recipe, resume: bool | None) -> Checkpoint | None:
        """Returns what a resumed run starts from. Raises `RecipeError` if there is another run, or any and `resume` is
        false; None is for what trains nothing, and fits any directory."""
        if not resume:
            if resume is not None:
                self._check_empty()
            return None
        if (self.path / "recipe.yaml").exists():  # else there is nothing yet, and the run begins
            self._check_same(recipe)
        return next(reversed(find(self.checkpoints)), None)

    def check_latest(self, resumed: Checkpoint | None) -> None:
        """Raises `RecipeError` if another process has trained here since `resumed` was found."""
        latest = next(reversed(find(self.checkpoints)), None)
        if (latest and latest.step) != (resumed and resumed.step):
            raise RecipeError(f"{self.path} was trained by another process meanwhile; start again with resume=True")

    def check_place(self) -> None:
        """Raises `RecipeError` if there can be no directory here."""
        if blocked := next((p for p in self.path.parents if p.exists() and not p.is_dir()), None):
            raise RecipeError(f"{self.path} cannot be made, since {blocked} is a file; write another output")
        if self.path.exists() and not self.path.is_dir():
            raise RecipeError(f"{self.path} is a file, and the run needs a directory; write another output or name")

    def _check_empty(self) -> None:
        self.check_place()
        if self.path.exists() and any(path.name != LOCK for path in self.path.iterdir()):
            raise RecipeError(
                f"{self.path} holds another run: continue it with resume=True, give this one another name "
                "(name=...), or remove it"
            )

    def _check_same(self, recipe: Recipe) -> None:
        path = self.path / "recipe.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # perhaps by an older hopd
        before, now = (_flat(yaml.safe_load(each.yaml())) for each in (Recipe.parse(content, where=str(path)), recipe))
        changed = [
            key
            for key in before | now
            if before.get(key) != now.get(key) and key not in CHANGEABLE and not key.startswith(CHANGEABLE_SECTIONS)
        ]
        if changed:
            raise RecipeError(
                f"{self.path} was made by another recipe: "
                + ", ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in changed)
                + "; a resumed run must compute the same"
            )

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Adds a line to `metrics` or another of `LINES`. Raises `CheckpointError` if that fails."""
        append_line(self.path / f"{name}.jsonl", line)

    def read(self, name: str) -> list[dict[str, Any]]:
        """Reads the lines of `metrics` or another of `LINES`, without a half-written last one."""
        return read_lines(self.path / f"{name}.jsonl")

    def score(self, step: int, scored: Mapping[str, Any]) -> None:
        """Writes an evaluation's score beside the metrics of its step."""
        change_lines(self.path / "metrics.jsonl", lambda line: line | dict(scored) if line["step"] == step else line)

    def rewind(self, step: int, evaluated: bool) -> None:
        """Forgets the lines of work that will be done again: what came after `step` complete steps, and the evaluation
        at that step unless it was `evaluated` before the checkpoint."""

        def kept(line: dict[str, Any]) -> dict[str, Any] | None:
            return line if line["step"] <= (step if evaluated else step - 1) else None

        def measured(line: dict[str, Any]) -> dict[str, Any] | None:
            if line["step"] == step and not evaluated:
                return {key: value for key, value in line.items() if key not in SCORES}
            return line if line["step"] <= step else None

        for name in LINES:
            change_lines(self.path / f"{name}.jsonl", measured if name in ("metrics", "horizon") else kept)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()}
