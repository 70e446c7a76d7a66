"""Chooses the prompts of rollouts: a fresh shuffle every epoch, as a function of the seed and a rollout's number."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hopd.errors import RecipeError
from hopd.recipe import TrainingSection
from hopd.rollout import Prompt, Stream, fold

Start = tuple[Prompt, int]
"""Names a rollout that begins: its prompt, and which of the prompt's samples it is."""


class PromptOrder:
    """Numbers the rollouts of a run: `samples` of each prompt, one prompt after another.

    A run without changes of its number of rollouts never has a prompt twice in a step: the rest of an epoch after its
    last whole step is skipped. Raises `RecipeError` if there are fewer prompts than one step needs.
    """

    def __init__(self, prompts: Sequence[Prompt], per_step: int, seed: int, samples: int = 1):
        if len(prompts) < per_step:
            raise RecipeError(
                f"a step needs {per_step} prompts (rollout.prompts) and the task has {len(prompts)}; lower "
                "rollout.prompts, or add prompts to the task"
            )
        self.prompts, self.per_step, self.seed, self.samples = prompts, per_step, seed, samples
        self.steps_per_epoch = len(prompts) // per_step
        self._shuffled: Callable[[int], NDArray[np.int64]] = lru_cache(maxsize=2)(self._shuffle)

    def at(self, step: int) -> list[Prompt]:
        """Returns the prompts of a step, counted from 0, over all processes, of a run without changes."""
        return [self._prompt(step * self.per_step + place) for place in range(self.per_step)]

    def starts(self, first: int, count: int) -> list[Start]:
        """Returns `count` rollouts that begin in one step, from number `first` on.

        Where a prompt comes twice, in a step across the end of an epoch, it gets other samples the second time: two
        rollouts of a step never draw the same numbers.
        """
        made: list[Start] = []
        begun: dict[int, set[int]] = {}
        for number in range(first, first + count):
            prompt, sample = self._prompt(number // self.samples), number % self.samples
            taken = begun.setdefault(prompt.id, set())
            while sample in taken:
                sample += self.samples
            taken.add(sample)
            made.append((prompt, sample))
        return made

    def steps(self, training: TrainingSection) -> int:
        """Returns the number of steps of the whole run."""
        if training.steps is not None:
            return training.steps
        assert training.epochs is not None
        return max(1, round(training.epochs * self.steps_per_epoch))

    def _prompt(self, number: int) -> Prompt:
        epoch, place = divmod(number, self.steps_per_epoch * self.per_step)
        return self.prompts[int(self._shuffled(epoch)[place])]

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng(fold(self.seed, Stream.SHUFFLE, epoch)).permutation(len(self.prompts))
