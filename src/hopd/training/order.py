"""Chooses the prompts of a step: a fresh shuffle every epoch, as a function of seed and step."""

from collections.abc import Sequence

import numpy as np

from hopd.errors import RecipeError
from hopd.processes import Processes
from hopd.recipe import TrainingSection
from hopd.rollout import Prompt, Stream, fold


class PromptOrder:
    """Orders the prompts so that no prompt occurs twice in a step: the rest of an epoch after its last whole step is
    skipped.

    Raises `RecipeError` if there are fewer prompts than one step needs.
    """

    def __init__(self, prompts: Sequence[Prompt], per_step: int, seed: int):
        if len(prompts) < per_step:
            raise RecipeError(
                f"a step needs {per_step} prompts (rollout.prompts) and the task has {len(prompts)}; lower "
                "rollout.prompts, or add prompts to the task"
            )
        self.prompts, self.per_step, self.seed = prompts, per_step, seed
        self.steps_per_epoch = len(prompts) // per_step

    def at(self, step: int) -> list[Prompt]:
        """Returns the prompts of a step, counted from 0, over all processes."""
        epoch, place = divmod(step, self.steps_per_epoch)
        shuffled = np.random.default_rng(fold(self.seed, Stream.SHUFFLE, epoch)).permutation(len(self.prompts))
        return [self.prompts[i] for i in shuffled[place * self.per_step : (place + 1) * self.per_step]]

    def shares(self, step: int, mini_batch: int | None, processes: Processes) -> list[list[Prompt]]:
        """Returns this process's prompts of a step, one list for each mini-batch (by default, one of all prompts)."""
        prompts = self.at(step)
        size = mini_batch or len(prompts)
        starts = range(0, len(prompts), size)
        return [prompts[start : start + size][processes.rank :: processes.size] for start in starts]

    def steps(self, training: TrainingSection) -> int:
        """Returns the number of steps of the whole run."""
        if training.steps is not None:
            return training.steps
        assert training.epochs is not None
        return max(1, round(training.epochs * self.steps_per_epoch))
