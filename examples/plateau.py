"""A horizon controller of your own: rollouts grow when the student has learnt what it can at their length.

Used by `plateau.yaml`; in this directory, run `hopd train plateau.yaml`.
"""

from dataclasses import dataclass, field
from typing import Any

from hopd.horizon import Decision, Evidence


@dataclass
class Plateau:
    """Multiplies the horizon by `growth` once the mean KL has not fallen by `least` (a share) for `patience` steps.

    hopd hands in `full_tokens`; the other fields are the options of the recipe.
    """

    full_tokens: int
    start: int
    growth: float = 1.5
    patience: int = 3
    least: float = 0.02
    horizon: int = field(init=False)
    best: float = field(init=False, default=float("inf"))
    waited: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.horizon = self.start

    def decide(self, step: int) -> Decision:
        return Decision(self.horizon, f"plateau: {self.horizon} tokens, {self.waited} steps without progress")

    def observe(self, evidence: Evidence) -> None:
        tokens = sum(evidence.counts)
        kl = sum(kl * count for kl, count in zip(evidence.reverse_kl, evidence.counts, strict=True) if count) / tokens
        if kl < (1 - self.least) * self.best:
            self.best, self.waited = kl, 0
            return
        self.waited += 1
        if self.waited == self.patience:
            self.horizon = min(self.full_tokens, round(self.growth * self.horizon))
            self.best, self.waited = float("inf"), 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that `observe` changes: a resumed run continues from here."""
        return {"horizon": self.horizon, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.horizon, self.best, self.waited = state["horizon"], state["best"], state["waited"]
