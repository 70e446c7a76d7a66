"""Defines a controller, which decides the rollout horizon before every step, and the decision that it returns."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Decision:
    """Ends the training rollouts of one step after `tokens` response tokens. `reason` explains it in a sentence."""

    tokens: int
    reason: str


@dataclass(frozen=True)
class Evidence:
    """Tells an adaptive controller what one training step measured. Positions count response tokens from 0.

    `horizon` is the step's decision, in tokens, `rollouts` their number, `stopped` how many of them ended by
    themselves, `mean_length` their mean length in tokens.

    `reverse_kl[i]` is the mean of −r_t in nats, an unbiased estimate of KL(student ‖ teacher), over the loss tokens
    with `edges[i] <= t < edges[i + 1]`; `counts[i]` is their number. `edges` are powers of two, because few rollouts
    reach the late positions: narrow bins would hold few tokens there.
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
    """Decides the horizon of each step, deterministically. Everything that it remembers is in its `state_dict`."""

    @property
    def full_tokens(self) -> int:
        """Returns T, the full length of a rollout in tokens, which no decision exceeds."""
        ...

    def decide(self, step: int) -> Decision:
        """Returns the horizon of training step `step`, which counts from 0: 1 to `full_tokens` tokens."""
        ...

    def observe(self, evidence: Evidence) -> None:
        """Takes note of a finished step. It is called once per step, after `decide`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain data that JSON can hold; it becomes part of each checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state from `state_dict`; later decisions are those of the controller that saved it."""
        ...
