"""Saves a run when it is due, and keeps the checkpoints that the recipe wants."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from hopd.model import LanguageModel
from hopd.processes import Processes
from hopd.recipe import CheckpointSection
from hopd.run import checkpoint


class Weights(Protocol):
    """Gives a checkpoint the weights: the optimizer, which has the masters. All processes take part; those that do not
    `keep` them get none."""

    def master_state(self, model: nn.Module, keep: bool) -> dict[str, Tensor]: ...


class Average(Protocol):
    """Gives a checkpoint the averaged model beside the weights, an empty one if nothing is averaged; `keep` is as in
    `Weights`."""

    def model_state(self, keep: bool) -> dict[str, Tensor]: ...


class Checkpointer:
    """Saves weights, their average, `tensors` and `state`, the last two by name, from functions that return them as
    they are at that moment.

    `state` is JSON, of the first process. All processes take part in those of `tensors`, which get none where their
    argument, whether they are kept, is false."""

    def __init__(
        self,
        directory: Path,
        settings: CheckpointSection,
        total_steps: int,
        student: LanguageModel,
        weights: Weights,
        average: Average,
        tensors: Mapping[str, Callable[[bool], dict[str, Tensor]]],
        state: Mapping[str, Callable[[], Any]],
        processes: Processes,
    ):
        self.directory, self.settings, self.total_steps = directory, settings, total_steps
        self.student, self.weights, self.average = student, weights, average
        self.tensors, self.state, self.processes = tensors, state, processes

    def is_due(self, step: int) -> bool:
        """Tells whether the run is saved after `step` complete steps: the last one always is."""
        return step == self.total_steps or step % self.settings.every == 0

    def save(self, step: int, score: float | None) -> None:
        """Writes a checkpoint of `step` complete steps, unless there is one. `score` is that of the evaluation at this
        step, if there was one. All processes call it together."""
        if self.processes.broadcast(any(found.step == step for found in checkpoint.find(self.directory))):
            return
        keep = self.processes.is_first
        weights = self.weights.master_state(self.student.model, keep)
        tensors = {name: current(keep) for name, current in self.tensors.items()}
        average = self.average.model_state(keep)
        with self.processes.together():
            if keep:
                state = {"step": step, "score": score, **{name: current() for name, current in self.state.items()}}
                model, tokenizer = self.student.model, self.student.tokenizer
                checkpoint.save(self.directory, step, model, weights, average, tokenizer, tensors, state)
                checkpoint.prune(self.directory, self.settings.keep_last, self.settings.keep_best)
