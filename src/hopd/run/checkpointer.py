"""Saves a run when it is due, and keeps the checkpoints that the recipe wants."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from hopd.evaluation import Evaluation
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

    def save(self, step: int, evaluation: Evaluation | None = None) -> None:
        """Writes a checkpoint of `step` complete steps, unless there is one, with the score of the last `evaluation` if
        it is of this step. All processes call it together."""
        if self.processes.broadcast(self._found(step) is not None):
            return
        keep = self.processes.is_first
        weights = self.weights.master_state(self.student.model, keep)
        tensors = {name: current(keep) for name, current in self.tensors.items()}
        average = self.average.model_state(keep)
        with self.processes.together():
            if keep:
                model, tokenizer = self.student.model, self.student.tokenizer
                state = self._state(step, evaluation)
                checkpoint.save(self.directory, step, model, weights, average, tokenizer, tensors, state)
                self._prune()

    def score(self, evaluation: Evaluation) -> None:
        """Adds an evaluation, and what it cost, to the checkpoint of its step, if there is one. All processes call it
        together."""
        with self.processes.together():
            if self.processes.is_first and (found := self._found(evaluation.step)):
                checkpoint.replace_state(found, self._state(found.step, evaluation))
                self._prune()

    def _found(self, step: int) -> checkpoint.Checkpoint | None:
        return next((found for found in checkpoint.find(self.directory) if found.step == step), None)

    def _state(self, step: int, evaluation: Evaluation | None) -> dict[str, Any]:
        """Returns the state after `step` complete steps. A score that is not a number is none."""
        evaluated = evaluation is not None and evaluation.step == step
        score = evaluation.score if evaluation is not None and evaluated else None
        known = {"score": score if score is not None and math.isfinite(score) else None, "evaluated": evaluated}
        return {"step": step, **known, **{name: current() for name, current in self.state.items()}}

    def _prune(self) -> None:
        checkpoint.prune(self.directory, self.settings.keep_last, self.settings.keep_best)
