"""Computes divergences between two categorical distributions from their log-probabilities, in nats per position.

`student` is log π_θ and `teacher` log π_g, both [N, V], normalised, over the same vocabulary. Gradients flow into both:
nothing is detached here, and nothing is averaged.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def reverse_kl(student: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """Returns KL(π_θ ‖ π_g) = Σ_v π_θ(v) (log π_θ(v) − log π_g(v)): mode-seeking, the loss that OPD minimises."""
    return (student.exp() * (student - teacher)).sum(-1)


def forward_kl(student: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """Returns KL(π_g ‖ π_θ) = Σ_v π_g(v) (log π_g(v) − log π_θ(v)): mass-covering."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def jsd(student: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"], beta: float) -> Float[Tensor, " N"]:
    """Returns the generalised Jensen–Shannon divergence: β KL(π_g ‖ m) + (1 − β) KL(π_θ ‖ m), m = β π_g + (1 − β) π_θ.

    `beta` is in (0, 1). Divided by β, its gradient tends to the forward KL's as β → 0; divided by 1 − β, to the reverse
    KL's as β → 1 (GKD, arXiv:2306.13649).
    """
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * forward_kl(mixture, teacher) + (1 - beta) * reverse_kl(student, mixture)


@torch.no_grad()
def entropy(log_probs: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """Returns the entropy of each distribution, in nats, without gradient. Tokens of probability 0 count as 0."""
    finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
    return -(finite.exp() * finite).sum(-1)
