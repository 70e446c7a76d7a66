"""Corrects for tokens that older weights sampled, by truncated importance ratios π_θ/μ of a token or of its prefix.

A loss that depends on the sampled y_t needs the ratio of y_t. A loss that is exact at each position depends only on the
prefix y_<t that the sampler reached, and for every function D_t of the prefix

    E_{y∼μ}[ Π_{s<t} π_θ(y_s)/μ(y_s) · D_t(y_<t) ]  =  E_{y∼π_θ}[ D_t(y_<t) ].

Given the prefix, the ratio of y_t itself has mean 1 under μ: there it would add only noise. A cap on the product bounds
its variance, which grows with the length of the prefix, at the price of a bias.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor


def truncated(log_ratio: Float[Tensor, " n"], cap: float) -> Float[Tensor, " n"]:
    """Returns min(exp(log_ratio), cap), detached: truncated importance sampling, biased where the cap applies."""
    return log_ratio.detach().exp().clamp(max=cap)


@dataclass
class PrefixSums:
    """Sums a value of each token over the tokens of its rollout before it, while blocks of tokens arrive in order.

    `row` is that of `LossTokens`, and ascends. One running sum over all N tokens is carried from block to block, so no
    second pass over the head is needed; what it was at a rollout's first token is subtracted. It is kept in float64, so
    that neither the blocks nor the rollouts listed before show in a float32 result.
    """

    row: Int[Tensor, " N"]
    _sums: Float64[Tensor, " N+1"] = field(init=False, repr=False)
    _first: Int[Tensor, " N"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # NaN marks what is not known yet: a block that was left out cannot pass for one whose values are 0.
        self._sums = torch.full((len(self.row) + 1,), torch.nan, dtype=torch.float64, device=self.row.device)
        self._sums[0] = 0
        self._first = torch.searchsorted(self.row, self.row)

    def before(self, rows: slice, values: Float[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Returns Σ_{s<t} value_s for the block `rows`, whose own values are `values`, without gradient."""
        self._sums[rows.start + 1 : rows.stop + 1] = self._sums[rows.start] + values.detach().double().cumsum(0)
        return self._sums[rows] - self._sums[self._first[rows]]
