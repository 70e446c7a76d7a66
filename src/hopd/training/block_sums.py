"""Adds up the gradients of rollouts by block of positions, and compares the blocks.

It does not know where the gradients come from: sketches in training, whole gradients in an experiment.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopd.horizon import Gradients
from hopd.processes import Processes

BLOCKS = 10  # tenths of the full length: a horizon of a tenth is the paper's


def block_edges(full_tokens: int) -> Int[Tensor, " edges"]:
    """Returns where the blocks begin and the last one ends: block ⌊t · K / full_tokens⌋ has token t."""
    return -(-torch.arange(BLOCKS + 1) * full_tokens // BLOCKS)


@dataclass
class BlockSums:
    """Holds sums over rollouts i, in float64: Σ v_ib, with v_ib the gradient of rollout i in block b, in D numbers;
    Σ v_ib · v_ic; and `counts[b][c]`, how many rollouts had all of both blocks."""

    vectors: Float[Tensor, "K D"]
    products: Float[Tensor, "K K"]
    counts: Float[Tensor, "K K"]

    @classmethod
    def zeros(cls, numbers: int, device: torch.device | str = "cpu") -> "BlockSums":
        """Returns the sums over no rollouts, whose gradients have this many `numbers`."""
        shapes = ((BLOCKS, numbers), (BLOCKS, BLOCKS), (BLOCKS, BLOCKS))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def add(self, vectors: Float[Tensor, "B K D"], complete: Bool[Tensor, "B K"]) -> None:
        """Adds B rollouts. A block counts for those of them that have all of it (`complete`)."""
        vectors, has = vectors.double() * complete[..., None], complete.double()
        self.vectors += vectors.sum(0)
        self.products += torch.einsum("ibd,icd->bc", vectors, vectors)
        self.counts += has.T @ has

    def summed(self, processes: Processes) -> "BlockSums":
        """Returns the sums over all processes."""
        parts = (self.vectors, self.products, self.counts)
        total = processes.sum(torch.cat([part.flatten() for part in parts])).cpu()
        made = total.split([part.numel() for part in parts])
        return BlockSums(*(new.view_as(part) for new, part in zip(made, parts, strict=True)))

    def gradients(self) -> Gradients:
        """Returns products over pairs of different rollouts, and the variance of one rollout's gradient, both unbiased.
        They are 0 where there is no pair."""
        rollouts = self.counts.diagonal()
        pairs = rollouts[:, None] * rollouts - self.counts
        crossed = self.vectors @ self.vectors.T
        products = torch.where(pairs > 0, (crossed - self.products) / pairs.clamp(min=1), 0)
        own = self.products.diagonal() - crossed.diagonal() / rollouts.clamp(min=1)
        noise = torch.where(rollouts > 1, own / (rollouts - 1).clamp(min=1), 0).clamp(min=0)  # rounding, below 0
        return Gradients(_tuples(products), tuple(noise.tolist()), _tuples(pairs))

    def metrics(self) -> dict[str, Any]:
        """Returns the gradients for metrics.jsonl, to four digits; a product of no pair is None."""
        found = self.gradients()
        rows = zip(found.products, found.pairs, strict=True)
        return {
            "products": [[_short(x) if n else None for x, n in zip(*row, strict=True)] for row in rows],
            "noise": [_short(x) for x in found.noise],
        }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _tuples(matrix: Float[Tensor, "K K"]) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix.tolist()))
