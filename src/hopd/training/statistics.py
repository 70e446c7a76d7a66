"""Collects the statistics of one training step: sums over its loss tokens, which processes add up, and their means."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hopd.horizon import Evidence
from hopd.objective.positions import LossTokens, TokenStatistics
from hopd.processes import Processes
from hopd.rollout.rollout import FinishReason, Rollout
from hopd.training.block_sums import BlockSums

SUMS = ("rollouts", "generated", *FinishReason, "tokens", "loss", "reverse_kl", "mismatch")
BINS = 24  # position bins with edges 0, 1, 2, 4, 8, …: enough for 8M tokens


@dataclass
class StepStatistics:
    """Holds sums in float64. `positions` is, for each position bin, the sum of −r_t (nats) and the number of tokens;
    `gradients` are the sums of rollouts' sketches, where the controller asks for them."""

    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    positions: Float[Tensor, "2 bins"] = field(default_factory=lambda: torch.zeros(2, BINS, dtype=torch.float64))
    gradients: BlockSums | None = None

    def add_rollouts(self, rollouts: Sequence[Rollout]) -> None:
        """Counts rollouts, their tokens and their finish reasons."""
        self._add(rollouts=len(rollouts), generated=sum(rollout.length for rollout in rollouts))
        for reason in FinishReason:
            self._add(**{reason: sum(rollout.finish is reason for rollout in rollouts)})

    def add_tokens(self, at: LossTokens, statistics: TokenStatistics) -> None:
        """Adds the tokens of one micro-batch; those of weight 0 do not count."""
        counted = at.weight > 0
        log_ratio = statistics.log_ratio[counted].double()
        self._add(
            tokens=int(counted.sum()),
            loss=float((at.weight * statistics.loss).double().sum()),
            reverse_kl=-float(log_ratio.sum()),
            # Sampler and learner differ in a token's log-prob by rounding, or because the sampler's weights are older.
            mismatch=float((statistics.log_prob - at.behaviour)[counted].abs().double().sum()),
        )
        bins = (at.position[counted] + 1).log2().ceil().long().clamp(max=BINS - 1).cpu()
        self.positions[0].index_add_(0, bins, -log_ratio.cpu())
        self.positions[1].index_add_(0, bins, torch.ones_like(log_ratio.cpu()))

    def summed(self, processes: Processes) -> "StepStatistics":
        """Returns the sums over all processes, each of which saw a part of the step."""
        sums = torch.tensor([self.sums[name] for name in SUMS], dtype=torch.float64)
        total = processes.sum(torch.cat([sums, self.positions.flatten()])).cpu()
        return StepStatistics(
            dict(zip(SUMS, total[: len(SUMS)].tolist(), strict=True)),
            total[len(SUMS) :].view(2, BINS),
            self.gradients.summed(processes) if self.gradients else None,
        )

    def mean(self, name: str, per: str = "tokens") -> float:
        """Returns one sum divided by another; 0 if the divisor is 0."""
        return self.sums[name] / self.sums[per] if self.sums.get(per) else 0.0

    def metrics(self) -> dict[str, Any]:
        """Returns the means by their names in metrics.jsonl, and what the gradients show."""
        return {
            "loss": self.mean("loss"),
            "reverse_kl": self.mean("reverse_kl"),
            "mismatch": self.mean("mismatch"),
            "covered": self.mean("tokens", per="generated"),
            "mean_length": self.mean("generated", per="rollouts"),
            "stop_rate": self.mean(FinishReason.STOP, per="rollouts"),
            "context_rate": self.mean(FinishReason.CONTEXT, per="rollouts"),
        } | ({"gradients": self.gradients.metrics()} if self.gradients else {})

    def evidence(self, step: int, horizon: int) -> Evidence:
        """Returns what the controller observes after the step."""
        used = int(self.positions[1].nonzero().max()) + 1 if self.positions[1].any() else 0
        counts = self.positions[1][:used]
        means = self.positions[0][:used] / counts.clamp(min=1)
        return Evidence(
            step=step,
            horizon=horizon,
            rollouts=int(self.sums["rollouts"]),
            stopped=int(self.sums[FinishReason.STOP]),
            mean_length=self.mean("generated", per="rollouts"),
            edges=tuple([0] + [2**i for i in range(used)]) if used else (),
            reverse_kl=tuple(means.tolist()),
            counts=tuple(int(count) for count in counts),
            gradients=self.gradients.gradients() if self.gradients else None,
        )

    def _add(self, **values: float) -> None:
        for name, value in values.items():
            self.sums[name] += value
