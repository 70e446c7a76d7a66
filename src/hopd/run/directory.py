"""Keeps the files of a run: its directory, lines of JSON that a resumed run rewinds, and atomic writing."""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from hopd.errors import CheckpointError, RecipeError
from hopd.recipe import Recipe
from hopd.run.checkpoint import Checkpoint, clean, find

LINES = ("metrics", "horizon", "evaluations", "scores", "samples")

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


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file at once: a reader, or a resumed run, finds the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with _reported(path):
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


class RunDirectory:
    """Opens `runs/NAME/`. One that holds another run is an error, unless that is to be resumed."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"

    def create(self, recipe: Recipe) -> None:
        """Makes the directory, and writes the recipe and the environment. Raises `CheckpointError` if that fails."""
        with _reported(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            clean(self.checkpoints)
        write_atomically(self.path / "recipe.yaml", recipe.yaml())
        write_atomically(self.path / "environment.json", json.dumps(_environment(), indent=1))

    def latest_checkpoint(self, recipe: Recipe, resume: bool) -> Checkpoint | None:
        """Returns what a resumed run starts from. Raises `RecipeError` if there is another run, or any and `resume` is
        not set."""
        if not resume:
            self._check_empty()
            return None
        if (self.path / "recipe.yaml").exists():  # else there is nothing yet, and the run begins
            self._check_same(recipe)
        return next(reversed(find(self.checkpoints)), None)

    def _check_empty(self) -> None:
        if blocked := next((p for p in self.path.parents if p.exists() and not p.is_dir()), None):
            raise RecipeError(f"{self.path} cannot be made, since {blocked} is a file; write another output")
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RecipeError(
                f"{self.path} holds another run: continue it with resume=True, give this one another name "
                "(name=...), or remove it"
            )

    def _check_same(self, recipe: Recipe) -> None:
        path = self.path / "recipe.yaml"
        written = Recipe.parse(yaml.safe_load(path.read_text()), where=str(path))  # perhaps by an older hopd
        before, now = (_flat(yaml.safe_load(each.yaml())) for each in (written, recipe))
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
        path = self.path / f"{name}.jsonl"
        with _reported(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def read(self, name: str) -> list[dict[str, Any]]:
        """Reads the lines of `metrics` or another of `LINES`, without a half-written last one."""
        path = self.path / f"{name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rewind(self, step: int, evaluated: bool) -> None:
        """Forgets the lines of work that will be done again: what came after `step` complete steps, and the evaluation
        at that step unless it was `evaluated` before the checkpoint."""
        for name in LINES:
            if (self.path / f"{name}.jsonl").exists():
                last = step if evaluated or name in ("metrics", "horizon") else step - 1
                kept = [json.dumps(line, ensure_ascii=False) for line in self.read(name) if line["step"] <= last]
                write_atomically(self.path / f"{name}.jsonl", "".join(line + "\n" for line in kept))


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}); make room and continue with resume=True"
        ) from error


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()}


def _environment() -> dict[str, Any]:
    packages = ("hopd", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: metadata.version(name) for name in packages if _installed(name)},
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
