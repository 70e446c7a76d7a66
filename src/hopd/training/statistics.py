"""Collects the statistics of one training step: sums over its loss tokens, which processes add up, and their means."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hopd.horizon import Block, Evidence
from hopd.objective.positions import LossTokens, TokenStatistics
from hopd.processes import Processes
from hopd.rollout.rollout import FinishReason, Rollout
from hopd.training.block_sums import BLOCKS, BlockSums, block_edges

MEASURED = ("loss", "reverse_kl", "mismatch", "staleness", "age")  # summed over tokens
OF_REFERENCES = ("references", "given", "reference_tokens", "reference_loss")  # given: tokens, some without loss
SUMS = ("gained", "rollouts", "generated", *FinishReason, "tokens", "fresh", *MEASURED, *OF_REFERENCES)
BINS = 24  # position bins with edges 0, 1, 2, 4, 8, …: enough for 8M tokens
OF_BLOCK = ("reverse_kl", "tokens", "rollouts", "stopped", "surplus")


@dataclass
class StepStatistics:
    """Holds sums in float64. `positions` is, for each position bin, the sum of −r_t (nats) and the number of tokens;
    `blocks` has the rows `OF_BLOCK` for each tenth of `full_tokens`. With `exact`, the loss is the reverse KL.
    `gradients` are the sums of rollouts' sketches, where the controller asks for them. Reference answers are counted
    apart, by number, tokens and loss: the rest is of what the student sampled."""

    full_tokens: int
    exact: bool = False
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    positions: Float[Tensor, "2 bins"] = field(default_factory=lambda: torch.zeros(2, BINS, dtype=torch.float64))
    blocks: Float[Tensor, "rows blocks"] = field(
        default_factory=lambda: torch.zeros(len(OF_BLOCK), BLOCKS, dtype=torch.float64)
    )
    gradients: BlockSums | None = None

    def add_gained(self, tokens: int) -> None:
        """Counts what rollouts gained in the step, those that go on included."""
        self._add(gained=tokens)

    def add_rollouts(self, rollouts: Sequence[Rollout]) -> None:
        """Counts rollouts that ended, their tokens and their finish reasons; of reference answers the tokens alone."""
        references = [rollout for rollout in rollouts if rollout.is_reference]
        self._add(references=len(references), given=sum(rollout.length for rollout in references))
        rollouts = [rollout for rollout in rollouts if not rollout.is_reference]
        self._add(rollouts=len(rollouts), generated=sum(rollout.length for rollout in rollouts))
        for reason in FinishReason:
            self._add(**{reason: sum(rollout.finish is reason for rollout in rollouts)})
        reached, stopped = (self.blocks[OF_BLOCK.index(name)] for name in ("rollouts", "stopped"))
        starts, ends = block_edges(self.full_tokens).unfold(0, 2, 1).T
        for rollout in rollouts:
            reached += (starts < ends) & (starts < rollout.length)
            stopped[self._block(rollout.length - 1)] += rollout.finish is FinishReason.STOP

    def add_tokens(self, at: LossTokens, statistics: TokenStatistics) -> None:
        """Adds the tokens of one micro-batch; those of weight 0 do not count."""
        counted = at.weight > 0
        log_ratio, position = statistics.log_ratio[counted].double(), at.position[counted].cpu()
        age = torch.zeros_like(at.position)[counted] if at.age is None else at.age[counted]
        apart = (statistics.log_prob - at.behaviour)[counted].abs().double()
        self._add(
            tokens=int(counted.sum()),
            loss=float((at.weight * statistics.loss).double().sum()),
            reverse_kl=-float(log_ratio.sum()),
            # Sampler and learner differ in a token's log-prob by rounding, or because the sampler's weights are older.
            mismatch=float(apart[age == 0].sum()),
            fresh=int((age == 0).sum()),
            staleness=float(apart[age > 0].sum()),
            age=float(age.double().sum()),
        )
        ones = torch.ones(len(position), dtype=torch.float64)
        bins = (position + 1).log2().ceil().long().clamp(max=BINS - 1)
        self.positions[0].index_add_(0, bins, -log_ratio.cpu())
        self.positions[1].index_add_(0, bins, ones)
        divergence = statistics.loss[counted].double() if self.exact else -log_ratio
        blocks = position * BLOCKS // self.full_tokens
        self.blocks[OF_BLOCK.index("reverse_kl")].index_add_(0, blocks, divergence.cpu())
        self.blocks[OF_BLOCK.index("tokens")].index_add_(0, blocks, ones)
        if statistics.surplus is not None:
            self.blocks[OF_BLOCK.index("surplus")].index_add_(0, blocks, statistics.surplus[counted].double().cpu())

    def add_reference_tokens(self, at: LossTokens, statistics: TokenStatistics) -> None:
        """Adds the tokens of a micro-batch of reference answers."""
        loss = float((at.weight * statistics.loss).double().sum())
        self._add(reference_tokens=int((at.weight > 0).sum()), reference_loss=loss)

    def summed(self, processes: Processes) -> "StepStatistics":
        """Returns the sums over all processes, each of which saw a part of the step."""
        sums = torch.tensor([self.sums[name] for name in SUMS], dtype=torch.float64)
        total = processes.sum(torch.cat([sums, self.positions.flatten(), self.blocks.flatten()])).cpu()
        sums, positions, blocks = total.split([len(SUMS), self.positions.numel(), self.blocks.numel()])
        named = dict(zip(SUMS, sums.tolist(), strict=True))
        sketched = self.gradients.summed(processes) if self.gradients else None
        return StepStatistics(
            self.full_tokens, self.exact, named, positions.view(2, BINS), blocks.view(-1, BLOCKS), sketched
        )

    def mean(self, name: str, per: str = "tokens") -> float:
        """Returns one sum divided by another; 0 if the divisor is 0."""
        return self.sums[name] / self.sums[per] if self.sums.get(per) else 0.0

    @property
    def loss(self) -> float:
        """Returns the loss that the step minimised: its mean over all loss tokens, sampled or not; 0 without any."""
        tokens = self.sums["tokens"] + self.sums["reference_tokens"]
        return (self.sums["loss"] + self.sums["reference_loss"]) / tokens if tokens else 0.0

    def metrics(self) -> dict[str, Any]:
        """Returns the means by their names in metrics.jsonl, and what the gradients show. Where all rollouts go on, it
        has none."""
        if not self.sums["rollouts"]:
            return {"rollouts": 0.0, **self._of_references()}
        return {
            "loss": self.loss,
            "reverse_kl": self.mean("reverse_kl"),
            "covered": self.mean("tokens", per="generated"),
            "mean_length": self.mean("generated", per="rollouts"),
            "stop_rate": self.mean(FinishReason.STOP, per="rollouts"),
            "context_rate": self.mean(FinishReason.CONTEXT, per="rollouts"),
            "rollouts": self.sums["rollouts"],
            **self._of_ages(),
            **self._of_references(),
            **({"gradients": self.gradients.metrics()} if self.gradients else {}),
        }

    def _of_references(self) -> dict[str, float]:
        """Returns the share of reference answers among all that was trained on, and the loss on either part. What there
        are no tokens for is left out."""
        references = self.sums["references"]
        if not references:
            return {}
        sampled = {"on_policy_loss": self.mean("loss")} if self.sums["tokens"] else {}
        return {
            "loss": self.loss,
            "off_policy_share": references / (self.sums["rollouts"] + references),
            "off_policy_loss": self.mean("reference_loss", per="reference_tokens"),
            "reference_tokens": self.sums["given"],
            **sampled,
        }

    def _of_ages(self) -> dict[str, float]:
        """Returns how far the log-probs of tokens are from those at which they were sampled, in nats a token: the
        `mismatch` of those that the step sampled, and the `staleness` of older ones, with the mean age in steps of
        all. What there are no tokens for is left out."""
        fresh, older = self.sums["fresh"], self.sums["tokens"] - self.sums["fresh"]
        of_fresh = {"mismatch": self.sums["mismatch"] / fresh} if fresh else {}
        of_older = {"mean_age": self.mean("age"), "staleness": self.sums["staleness"] / older} if older else {}
        return of_fresh | of_older

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
            blocks=self._blocks(),
            mean_age=self.mean("age"),
            generated_tokens=int(self.sums["gained"]),
            references=int(self.sums["references"]),
        )

    def _block(self, position: int) -> int:
        return position * BLOCKS // self.full_tokens

    def _blocks(self) -> tuple[Block, ...]:
        edges = block_edges(self.full_tokens).tolist()
        columns = self.blocks.T.tolist()
        return tuple(
            Block(start, end, int(rollouts), int(stopped), int(tokens), kl / max(tokens, 1), surplus / max(tokens, 1))
            for start, end, (kl, tokens, rollouts, stopped, surplus) in zip(edges, edges[1:], columns, strict=False)
        )

    def _add(self, **values: float) -> None:
        for name, value in values.items():
            self.sums[name] += value
