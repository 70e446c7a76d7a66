"""Credits a token with the later signals of its rollout: the γ of Eq. 4 to 6."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def discounted_credit(
    log_ratio: Float[Tensor, " N"], row: Int[Tensor, " N"], position: Int[Tensor, " N"], gamma: float
) -> Float[Tensor, " N"]:
    """Returns Σ_{k≥t} γ^{k−t} r_k within each rollout (Eq. 5).

    γ = 0 is token-level (Eq. 6), γ = 1 sequence-level (Eq. 4). The tokens of all rollouts form one flat list of N:
    `row` is the index of a token's rollout and `position` its place in the response. Missing positions contribute
    nothing.
    """
    if gamma == 0 or log_ratio.numel() == 0:
        return log_ratio
    length = int(position.max()) + 1
    grid = log_ratio.new_zeros(int(row.max()) + 1, length).index_put((row, position), log_ratio)
    span = 1  # grid[t] holds the credit of the next `span` signals; doubling it takes log2(length) passes
    while span < length:
        grid = grid + torch.nn.functional.pad(gamma**span * grid[:, span:], (0, span))
        span *= 2
    return grid[row, position]
