"""Saves the student as a checkpoint would, reads it back, and compares what both compute."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from hopd.assembly import Parts
from hopd.assembly.models import load_saved
from hopd.errors import ModelError
from hopd.forecast.memory import device_memory, estimate_memory
from hopd.model import LanguageModel
from hopd.model.adapters import has_adapters, merge, without_adapters
from hopd.model.sharding import local
from hopd.run.checkpoint import save_model

TOKENS = 16
LARGEST = 32e9  # bytes: writing and reading more would take minutes
NOISE = 0.05  # of an adapter's B, which is zero at first: with it, adapters change the logits by some tenths
# The largest error, as a part of the logits, or of what adapters change of them: rounding stays far below, and a wrong
# scale, name or matrix far above. In bf16 a mixture may send tokens to other experts.
WITHIN = {"fp32": 1e-2, "bf16": 0.2}


class _NoRoom(Exception):
    """The disk did not take the student."""


def check_saved(parts: Parts) -> str:
    """Raises `ModelError` unless the student that a checkpoint holds, its adapters merged, computes what the student
    does; returns a sentence, which says so if there is no room to try. All processes call it together."""
    place = next(path for path in (parts.directory.path, *parts.directory.path.absolute().parents) if path.exists())
    if reason := parts.processes.broadcast(_no_room(parts, place)):
        return f"checkpoint: not read back, {reason}"
    student, optimizer, first = parts.student, parts.learner.optimizer, parts.processes.is_first
    adapted = has_adapters(student.model)
    ids = torch.arange(1, TOKENS + 1)[None] % student.head.vocabulary
    kind = "merged and read back" if adapted else "read back"
    with _noise(parts) if adapted else nullcontext():
        expected, weights = _logits(student, ids), optimizer.master_state(student.model, first)
        with without_adapters(student.model):
            scale = float((expected - adapted * _logits(student, ids)).norm())
        with parts.processes.together():
            if first:
                try:
                    logits = _read_back(parts, place, weights, ids)
                except _NoRoom as full:
                    return f"checkpoint: not read back, since {place} could not take it ({full})"
                error = float((logits - expected).norm()) / max(scale, 1e-12)
                if not error <= WITHIN[parts.recipe.training.precision]:
                    raise ModelError(
                        f"the student {student.name}, saved as a checkpoint, {kind}, has other logits, by "
                        f"{100 * error:.3g} %: what is trained could not be used; please report this model"
                    )
    return f"checkpoint: saved, {kind}, the student computes the same"


def _no_room(parts: Parts, place: Path) -> str | None:
    """Returns why a copy of the student has no room, None if it has."""
    student, cpu = parts.student, torch.device("cpu")
    needed = 4 * sum(parameter.numel() for parameter in student.model.parameters())
    disk, held = shutil.disk_usage(place).free, estimate_memory(parts).static if student.device == cpu else 0.0
    if needed > LARGEST:
        return f"since it takes {needed / 1e9:.3g} GB; try the first one with hopd eval"
    if needed > disk:
        return f"since it takes {needed / 1e9:.3g} GB and {place} has {disk / 1e9:.3g}"
    if held + 2 * needed > device_memory(cpu):  # with what reading takes
        return f"since it takes {needed / 1e9:.3g} GB of memory, twice for a moment"
    return None


@contextmanager
def _noise(parts: Parts) -> Iterator[None]:
    """Gives adapters that change nothing yet random weights, until the block ends."""
    optimizer, generator = parts.learner.optimizer, torch.Generator().manual_seed(parts.processes.rank)
    before = optimizer.snapshot()
    try:
        with torch.no_grad():
            for name, master in optimizer.masters.items():
                if ".lora_B." in name:
                    noise = torch.randn(local(master).shape, generator=generator)
                    local(master).add_(NOISE * noise.to(local(master).device))
        optimizer.refresh()
        yield
    finally:
        optimizer.roll_back(before)


@torch.no_grad()
def _logits(model: LanguageModel, ids: Tensor) -> Float[Tensor, "1 L V"]:
    with model.sharding.unsharded():
        return model.head.logits(model.hidden(ids.to(model.device))).float().cpu()


def _read_back(parts: Parts, place: Path, weights: dict[str, Tensor], ids: Tensor) -> Float[Tensor, "1 L V"]:
    """Returns the logits of the saved student, read as fp32 on the CPU, without adapters."""
    student = parts.student
    try:
        with tempfile.TemporaryDirectory(prefix=".hopd-", dir=place) as saved:
            try:
                save_model(Path(saved), student.model, weights, student.tokenizer)
            except Exception as error:  # safetensors has error types of its own for a failed write
                raise _NoRoom(error) from error
            loaded = load_saved(parts.recipe, Path(saved))
    except ModelError as error:
        raise ModelError(f"{student.name}, saved as a checkpoint, cannot be read back: {error}") from error
    if has_adapters(loaded.model):
        merge(loaded)
    loaded.limit_vocabulary(student.head.vocabulary)
    return _logits(loaded, ids)
