"""What makes rollouts. The training loop and the evaluation know engines by these protocols only."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from hopd.recipe.sampling import Sampling
from hopd.remote import Losses
from hopd.rollout.rollout import Prompt, Rollout


class Engine(ABC):
    """Samples from the student as it is at the time of the call."""

    @abstractmethod
    def sample(
        self, prompts: Sequence[Prompt], max_tokens: int, sampling: Sampling, seed: int, samples: int = 1
    ) -> list[Rollout]:
        """Returns `samples` rollouts of each prompt, of at most `max_tokens` response tokens: all of the first
        prompt's, then all of the second's; none of no prompts. The random numbers depend on `seed`, prompt id, sample
        and position, and nothing else."""

    def check(self, longest: int) -> Iterable[str]:
        """Returns a sentence for each look at the engine before a run whose longest prompt and full response make
        `longest` tokens. Raises a `HopdError` for what cannot work."""
        return ()

    def metrics(self) -> dict[str, float]:
        """Returns what the last step showed of the engine, by name. All processes call it together."""
        return {}


class CopyEngine(Protocol):
    """An engine that decodes with a copy of the student's weights.

    With `shared`, all processes sample from one copy: the first one's `receive` fills it, and what that gives goes to
    `adopt` on the others.
    """

    shared: bool
    losses: Losses

    def sample(
        self, prompts: Sequence[Prompt], max_tokens: int, sampling: Sampling, seed: int, samples: int = 1
    ) -> list[Rollout]:
        """Returns rollouts as `Engine.sample` does; weights must have been received."""
        ...

    def check(self, longest: int) -> Iterable[str]:
        """Returns sentences as `Engine.check` does."""
        ...

    def receive(self, weights: Mapping[str, Tensor]) -> Any:
        """Decodes with these from now on. Names are those of a checkpoint."""
        ...

    def adopt(self, received: Any) -> None: ...

    def score(self, ids: Sequence[int]) -> dict[str, Float[Tensor, " N"]]:
        """For each holder of a copy, by a name for people: its log-probs, at temperature 1, of all tokens but the
        first."""
        ...

    def rest(self) -> None:
        """Until the next `receive` nothing is sampled: its memory can be used."""
        ...
