"""Writes and finds atomic checkpoints: a Hugging Face model directory, and what a resumed run needs beside it.

There is no state of a random generator to save: every random number is a function of seed, step, prompt, sample and
position. A checkpoint is written under another name and renamed when all of it is on disk, so one that can be found is
whole; it is renamed away before it is removed, for the same reason.
"""

import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hopd.errors import CheckpointError
from hopd.run.files import remedy, write_atomically

_NAME = re.compile(r"step-(\d{6,})")
STATE = "state.json"
MAY_LACK = ("flight",)  # what is saved only where there is something
_UNFINISHED, _REMOVED = ".unfinished-", ".removed-"


@dataclass(frozen=True)
class Checkpoint:
    """Names a whole checkpoint: `path` loads with `from_pretrained`, `state` is the run after `step` complete steps."""

    path: Path
    step: int

    @property
    def average(self) -> Path:
        """Returns the place of the averaged model, which exists if the run averages its weights."""
        return self.path / "average"

    @property
    def state(self) -> dict[str, Any]:
        """Reads the saved state. Raises `CheckpointError` if it is not what `save` wrote."""
        with self._explained():
            state: dict[str, Any] = json.loads((self.path / STATE).read_text(encoding="utf-8"))
        return state

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Reads the tensors that were saved under `name`, none if there were none. Raises `CheckpointError` as `state`
        does."""
        path = self.path / f"{name}.safetensors"
        with self._explained():
            return load_file(path) if name not in MAY_LACK or path.exists() else {}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{self.path} is not what hopd wrote ({error}); remove it to continue from an earlier one"
            ) from error


def save(
    directory: Path,
    step: int,
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    average: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    tensors: dict[str, dict[str, Tensor]],
    state: dict[str, Any],
) -> Checkpoint:
    """Writes a checkpoint, with the averaged model unless `average` is empty. Raises `CheckpointError` when that fails,
    on a full disk for example; earlier ones stay whole."""
    final = directory / f"step-{step:06d}"
    unfinished = directory / f"{_UNFINISHED}{final.name}"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for place, whole in ((unfinished, weights), (Checkpoint(unfinished, step).average, average)):
            if whole:
                save_model(place, model, whole, tokenizer)
        for name, group in tensors.items():
            if group or name not in MAY_LACK:
                saved = {key: tensor.contiguous() for key, tensor in group.items()}
                save_file(saved, unfinished / f"{name}.safetensors")
        (unfinished / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        for path in [*unfinished.rglob("*"), unfinished]:
            _flush(path)
        remove(Checkpoint(final, step))
        os.replace(unfinished, final)
        _flush(directory)
    except Exception as error:  # safetensors has error types of its own for a failed write
        shutil.rmtree(unfinished, ignore_errors=True)
        kept = find(directory)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {directory} ({error}); "
            + (f"{kept[-1].path.name} is whole: " if kept else "no earlier one exists: ")
            + remedy(error)
        ) from error
    return Checkpoint(final, step)


def replace_state(checkpoint: Checkpoint, state: dict[str, Any]) -> None:
    """Replaces the state of a checkpoint at once. Raises `CheckpointError` if that fails; the old one stays."""
    write_atomically(checkpoint.path / STATE, json.dumps(state, indent=1))


def save_model(
    place: Path, model: PreTrainedModel, weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Writes a model directory of Hugging Face: of the adapters alone if the model has any."""
    with warnings.catch_warnings():  # peft looks for the base's config where only hopd can: package:NAME/PATH
        warnings.filterwarnings("ignore", message="Could not find a config file in", module="peft")
        model.save_pretrained(place, state_dict=weights)
    tokenizer.save_pretrained(place)


def find(directory: Path) -> list[Checkpoint]:
    """Returns the whole checkpoints, oldest first."""
    if not directory.is_dir():
        return []
    matches = [(path, _NAME.fullmatch(path.name)) for path in directory.iterdir()]
    return sorted((Checkpoint(path, int(m[1])) for path, m in matches if m), key=lambda c: c.step)


def prune(directory: Path, keep_last: int, keep_best: bool) -> None:
    """Keeps the last ones, and the best if asked; removes the others, and what interruptions left behind."""
    checkpoints = find(directory)
    kept = {checkpoint.step for checkpoint in checkpoints[-keep_last:]}
    if keep_best:
        found = {c.step: c.state["score"] for c in checkpoints}
        scores = {step: score for step, score in found.items() if score is not None and math.isfinite(score)}
        kept |= {max(scores, key=lambda step: (scores[step], step))} if scores else set()
    for checkpoint in checkpoints:
        if checkpoint.step not in kept:
            remove(checkpoint)
    clean(directory)


def used(directory: Path) -> tuple[int, int]:
    """Returns the bytes of the whole checkpoints, and of what interruptions left behind."""
    bytes_of = {path: sum(file.stat().st_size for file in path.rglob("*")) for path in directory.glob("*")}
    whole = {found.path for found in find(directory)}
    left = sum(size for path, size in bytes_of.items() if path.name.startswith((_UNFINISHED, _REMOVED)))
    return sum(size for path, size in bytes_of.items() if path in whole), left


def clean(directory: Path) -> None:
    """Removes what interruptions left behind."""
    for leftover in directory.iterdir():
        if leftover.name.startswith((_UNFINISHED, _REMOVED)):
            shutil.rmtree(leftover, ignore_errors=True)


def remove(checkpoint: Checkpoint) -> None:
    """Removes a checkpoint, if it is there; one that is partly removed is not found any more."""
    if checkpoint.path.exists():
        renamed = checkpoint.path.with_name(f"{_REMOVED}{checkpoint.path.name}")
        shutil.rmtree(renamed, ignore_errors=True)
        os.replace(checkpoint.path, renamed)
        shutil.rmtree(renamed, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
