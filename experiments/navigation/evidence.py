"""Measures a step as training of language models does: divergence, entropy and gradients by tenths of an episode."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from experiments.navigation.course import STEPS
from experiments.navigation.policy import Gaussian
from hopd.horizon import Block, Decision, Evidence
from hopd.training.block_sums import BlockSums, block_edges


class LastMatrix:
    """Reads inputs of a linear layer and gradients of its outputs, behind which positions no longer mix. One forward
    pass with a gradient belongs to each group of rollouts."""

    def __init__(self, layer: nn.Linear):
        self.numbers = layer.weight.numel()
        self.inputs: list[Float[Tensor, "R T I"]] = []
        self.deltas: dict[int, Float[Tensor, "R T O"]] = {}
        layer.register_forward_hook(self._forward)

    def _forward(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if output.requires_grad:
            place = len(self.inputs)
            self.inputs.append(inputs[0].detach())
            output.register_hook(lambda delta: self.deltas.update({place: delta}))

    def sums(self, actions: int) -> BlockSums:
        """Returns what the groups of a step add up to, whose loss was a mean over so many actions, and forgets them."""
        sums, edges = BlockSums.zeros(self.numbers), block_edges(STEPS)
        for place, x in enumerate(self.inputs):
            rows, length = x.shape[:2]
            x, delta = (nn.functional.pad(part, (0, 0, 0, STEPS - length)) for part in (x, self.deltas[place]))
            blocks = [delta[:, a:b].mT @ x[:, a:b] for a, b in pairwise(edges)]
            vectors = actions * torch.stack(blocks, dim=1).flatten(2)
            sums.add(vectors, (length >= edges[1:]).expand(rows, -1))
        self.inputs, self.deltas = [], {}
        return sums


def evidence(
    step: int, decision: Decision, policies: Sequence[tuple[Gaussian, Gaussian]], gradients: BlockSums | None
) -> Evidence:
    """Returns what the ended groups of a step show; `policies` pairs each group's student and teacher."""
    edges = block_edges(STEPS).tolist()
    sums = torch.zeros(3, STEPS)  # divergence, surplus of the teacher's entropy, actions
    lengths = [mean.shape[:2] for (mean, _), _ in policies]
    for student, teacher in policies:
        mine, theirs = Normal(*student), Normal(*teacher)
        apart = kl_divergence(mine, theirs).sum(-1)
        surplus = (theirs.entropy() - mine.entropy()).sum(-1)
        for row, values in enumerate((apart, surplus, torch.ones_like(apart))):
            sums[row, : values.shape[1]] += values.detach().sum(0)
    blocks = []
    for start, end in pairwise(edges):
        kl, surplus, actions = sums[:, start:end].sum(1).tolist()
        reached = sum(rows for rows, length in lengths if length > start)
        blocks.append(Block(start, end, reached, 0, int(actions), kl / max(actions, 1), surplus / max(actions, 1)))
    rollouts = sum(rows for rows, _ in lengths)
    return Evidence(
        step,
        decision.tokens,
        rollouts,
        stopped=0,
        mean_length=float(sums[2].sum()) / max(1, rollouts),
        edges=(),
        reverse_kl=(),
        counts=(),
        blocks=tuple(blocks),
        gradients=gradients.gradients() if gradients else None,
    )
