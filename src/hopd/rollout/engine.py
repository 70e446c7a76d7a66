"""What makes rollouts. The training loop and the evaluation know engines by this protocol only."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from hopd.rollout.rollout import Prompt, Rollout
from hopd.rollout.sampling import Sampling


@runtime_checkable
class Engine(Protocol):
    def sample(
        self, prompts: Sequence[Prompt], max_tokens: int, sampling: Sampling, seed: int, samples: int = 1
    ) -> list[Rollout]:
        """`samples` rollouts of each prompt, of at most `max_tokens` response tokens: all of the first prompt's, then
        all of the second's. The random numbers depend on `seed`, prompt id, sample and position, and nothing else."""
        ...
