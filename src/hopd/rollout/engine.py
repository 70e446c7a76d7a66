"""Defines the interface of rollout engines, which is all that the training loop and the evaluation know of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from hopd.errors import EngineError
from hopd.recipe.sampling import Sampling
from hopd.remote import RequestStats
from hopd.rollout.rollout import Prompt, Rollout, Stretch


class Engine(ABC):
    """Samples from the student's current weights.

    An engine of your own that computes with a sharded student must do so `with student.sharding.unsharded():`."""

    @abstractmethod
    def sample(
        self, prompts: Sequence[Prompt], max_tokens: int, sampling: Sampling, seed: int, samples: int = 1
    ) -> list[Rollout]:
        """Returns `samples` rollouts of each prompt, of at most `max_tokens` response tokens, ordered by prompt.

        Without prompts the list is empty. The random numbers depend on `seed`, prompt id, sample and position alone."""

    def extend(self, stretches: Sequence[Stretch], sampling: Sampling) -> list[Rollout]:
        """Returns the rollouts of `stretches`, each with more tokens, in the same order.

        An engine of your own may leave this to `sample`, and then starts rollouts only: raises `EngineError` for one
        that is to be continued, in its first step already. `sample` is called without stretches too, because it may
        have to take part in what several processes do together.
        """
        made = [] if stretches else self.sample([], 1, sampling, 0)
        for (limit, seed), group in groupby(stretches, lambda one: (one.limit, one.rollout.seed)):
            made += self._started(list(group), limit, seed, sampling)
        return made

    def _started(self, stretches: Sequence[Stretch], limit: int, seed: int, sampling: Sampling) -> list[Rollout]:
        rollouts = [one.rollout for one in stretches]
        if any(one.keep or one.rollout.length for one in stretches):
            raise EngineError(
                f"{type(self).__name__} has no `extend`, so rollouts cannot continue; write continue: false"
            )
        samples = max(rollout.sample for rollout in rollouts) + 1
        prompts = {rollout.prompt.id: rollout.prompt for rollout in rollouts}
        sampled = self.sample(list(prompts.values()), limit, sampling, seed, samples)
        found = {(rollout.prompt.id, rollout.sample): rollout for rollout in sampled}
        return [found[rollout.prompt.id, rollout.sample] for rollout in rollouts]

    def check(self, longest: int) -> Iterable[str]:
        """Returns findings about the engine, as sentences, before a run. `longest` counts the tokens of the longest
        prompt and full response. Raises a `HopdError` for what cannot work."""
        return ()

    def metrics(self) -> dict[str, float]:
        """Returns the engine's measurements of the last step, by name. All processes call it together."""
        return {}


def answers_of(
    teacher: Engine, prompts: Sequence[Prompt], max_tokens: int, sampling: Sampling, seed: int, samples: int = 1
) -> list[Rollout]:
    """Returns a teacher's rollouts of the prompts, as `Engine.sample` does. Where it has prompts of its own it reads
    those, and its answers are put behind the student's."""
    own = {prompt.id: prompt for prompt in prompts}
    made = teacher.sample([prompt.of_teacher for prompt in prompts], max_tokens, sampling, seed, samples)
    return [replace(rollout, prompt=own[rollout.prompt.id]) for rollout in made]


class CopyEngine(Protocol):
    """Decodes with a copy of the student's weights.

    With `shared`, all processes sample from one copy: the first process calls `receive`, and every process passes its
    result to `adopt`. `stats` counts faults and retries.
    """

    shared: bool
    stats: RequestStats

    def extend(self, stretches: Sequence[Stretch], sampling: Sampling) -> list[Rollout]:
        """Returns longer rollouts as `Engine.extend` does, after `receive`."""
        ...

    def check(self, longest: int) -> Iterable[str]:
        """Returns findings as `Engine.check` does."""
        ...

    def receive(self, weights: Mapping[str, Tensor]) -> Any:
        """Takes new weights, named as in a checkpoint, and decodes with them from now on."""
        ...

    def adopt(self, received: Any) -> None:
        """Takes the first process's result of `receive`."""
        ...

    def score(self, ids: Sequence[int]) -> dict[str, Float[Tensor, " N"]]:
        """Returns the log-probs at temperature 1 of all tokens but the first, for each holder of a copy by its name."""
        ...

    def sleep(self) -> None:
        """Frees memory until the next `receive`; nothing is sampled before it."""
        ...
