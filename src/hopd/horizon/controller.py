"""The rollout horizon is a decision, made anew before every step. This file says what a decision is."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Decision:
    """Training rollouts of this step stop after `tokens` response tokens; `reason` is a sentence for a person."""

    tokens: int
    reason: str


@dataclass(frozen=True)
class Evidence:
    """What one training step showed, for controllers that adapt. Positions count response tokens from 0.

    `reverse_kl[i]` is the mean of −r_t, an unbiased estimate of KL(student ‖ teacher), over the loss tokens with
    `edges[i] <= t < edges[i + 1]`, and `counts[i]` is how many there were. `edges` are powers of two, so that the
    late positions, which few rollouts reach, are not split thin.
    """

    step: int
    horizon: int
    rollouts: int
    stopped: int
    mean_length: float
    edges: tuple[int, ...]
    reverse_kl: tuple[float, ...]
    counts: tuple[int, ...]


class Controller(Protocol):
    """Decides the generation horizon. Deterministic; everything it remembers is in its `state_dict`."""

    @property
    def full_tokens(self) -> int:
        """T: what no decision exceeds."""
        ...

    def decide(self, step: int) -> Decision:
        """The horizon of training step `step`, counted from 0; always from 1 to `full_tokens`."""
        ...

    def observe(self, evidence: Evidence) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
