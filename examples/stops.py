"""A horizon controller of your own: as long as answers need to end, so that the student learns to end them.

Used by `stops.yaml`; in this directory, run `hopd train stops.yaml`.
"""

from dataclasses import dataclass, field
from typing import Any

from hopd.horizon import Decision, Evidence


@dataclass
class Stops:
    """Moves the horizon by `change` (a share) until about `wanted` of the rollouts (a share) end by themselves.

    hopd hands in `full_tokens`; the other fields are the options of the recipe. The share is averaged over about
    `memory` steps, so that the horizon does not follow the chance of a single one.
    """

    full_tokens: int
    start: int
    wanted: float = 0.5
    change: float = 0.1
    memory: int = 3
    horizon: int = field(init=False)
    share: float = field(init=False)

    def __post_init__(self) -> None:
        self.horizon, self.share = self.start, self.wanted

    def decide(self, step: int) -> Decision:
        return Decision(self.horizon, f"stops: {self.horizon} tokens, where {self.share:.0%} of the rollouts end")

    def observe(self, evidence: Evidence) -> None:
        self.share += (evidence.stopped / evidence.rollouts - self.share) / self.memory
        if self.share < 0.9 * self.wanted:
            self.horizon = min(self.full_tokens, self.horizon + max(1, round(self.change * self.horizon)))
        elif self.share > 1.1 * self.wanted:
            self.horizon = max(self.start, self.horizon - max(1, round(self.change * self.horizon)))

    def state_dict(self) -> dict[str, Any]:
        """Everything that `observe` changes: a resumed run continues from here."""
        return {"horizon": self.horizon, "share": self.share}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.horizon, self.share = state["horizon"], state["share"]
