"""Estimates the distillation gradient from less than the whole vocabulary: the sampled token, or k likely ones.

Every function returns one loss per position, whose gradient is the estimator's; callers weight, sum, and divide once.
r_t = log π_g(y_t) − log π_θ(y_t) is the log-ratio (Eq. 1).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopd.objective.detail import Tail
from hopd.objective.divergence import reverse_kl


def sampled(
    log_prob: Float[Tensor, " N"],
    advantage: Float[Tensor, " N"],
    importance: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, " N"]:
    """Returns −A_t log π_θ(y_t), with A_t = r_t for token-level OPD (Eq. 6). A_t, `advantage`, is detached here.

    `importance` is π_θ(y_t) / μ(y_t), for tokens that an older policy μ sampled; it is detached too.
    """
    weight = advantage if importance is None else importance * advantage
    return -weight.detach() * log_prob


def top_k(student: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"], k: int, tail: Tail) -> Float[Tensor, " N"]:
    """Returns the reverse KL on S, the student's k most likely tokens, from both models' whole log-probs; k < V.

    `paper`         −Σ_{v∈S} A_v log π_θ(v), A_v = w_v (log π_g(v) − log π_θ(v)), w the student's softmax over S, all
                    of A detached. This is how `paper.md` reads Table 3's "student top-K", from public code. It does not
                    renormalise inside A, so it is a biased estimate of the reverse KL's gradient.
    `renormalised`  KL between the two distributions, restricted to S and normalised there.
    `bucket`        KL over k + 1 outcomes, S and "any other token": a lower bound of the whole KL.
    """
    candidates: Int[Tensor, "N K"] = student.topk(k, dim=-1).indices
    s, g = student.gather(-1, candidates), teacher.gather(-1, candidates)
    if tail == "bucket":
        return reverse_kl(_with_rest(student, candidates, s), _with_rest(teacher, candidates, g))
    return on_candidates(s, g, tail)


def on_candidates(s: Float[Tensor, "N K"], g: Float[Tensor, "N K"], tail: Tail) -> Float[Tensor, " N"]:
    """Returns `top_k`'s loss `paper` or `renormalised`, from log π_θ and log π_g of K candidates of either model."""
    if tail == "paper":
        advantage = s.softmax(-1) * (g - s)
        return -(advantage.detach() * s).sum(-1)
    return reverse_kl(s.log_softmax(-1), g.log_softmax(-1))


def _with_rest(
    log_probs: Float[Tensor, "N V"], candidates: Int[Tensor, "N K"], kept: Float[Tensor, "N K"]
) -> Float[Tensor, "N K+1"]:
    """Appends the log-prob of all tokens that are not candidates."""
    rest = log_probs.scatter(-1, candidates, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([kept, rest], dim=-1)
