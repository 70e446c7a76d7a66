"""Estimators of the distillation gradient that need less than the whole vocabulary: sampled token and top-k.

Every function gives one loss a position, whose gradient is the estimator's; callers weight, sum, and divide once.
r_t = log π_g(y_t) − log π_θ(y_t) is the log-ratio (Eq. 1).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopd.objective.divergence import reverse_kl
from hopd.objective.objective import Tail


def sampled(
    log_prob: Float[Tensor, " N"],
    advantage: Float[Tensor, " N"],
    importance: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, " N"]:
    """Eq. 6: gradient −A_t ∇log π_θ(y_t), with A_t = r_t for token-level OPD. `advantage` is detached here.

    `importance` is π_θ(y_t) / μ(y_t), for tokens that an older policy μ sampled; detached too.
    """
    weight = advantage if importance is None else importance * advantage
    return -weight.detach() * log_prob


def importance_ratio(log_prob: Float[Tensor, " N"], behaviour: Float[Tensor, " N"], cap: float) -> Float[Tensor, " N"]:
    """min(π_θ(y_t) / μ(y_t), cap), detached: truncated importance sampling, biased where it is cut."""
    return (log_prob - behaviour).detach().exp().clamp(max=cap)


def top_k(student: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"], k: int, tail: Tail) -> Float[Tensor, " N"]:
    """Reverse KL on S, the student's k most likely tokens. From log π_θ and log π_g over the whole vocabulary, k < V.

    `paper`         −Σ_{v∈S} A_v log π_θ(v), A_v = w_v (log π_g(v) − log π_θ(v)), w the student's softmax over S, all
                    of A detached. The reading of Table 3's "student top-K" that `paper.md` derives from public code;
                    it does not renormalise inside A, so it is a biased estimate of the reverse KL's gradient.
    `renormalised`  KL between the two distributions restricted to S and normalised there.
    `bucket`        KL over k + 1 outcomes, S and "anything else": a lower bound of the whole KL.
    """
    candidates: Int[Tensor, "N K"] = student.topk(k, dim=-1).indices
    s, g = student.gather(-1, candidates), teacher.gather(-1, candidates)
    if tail == "bucket":
        return reverse_kl(_with_rest(student, candidates, s), _with_rest(teacher, candidates, g))
    return among(s, g, tail)


def among(s: Float[Tensor, "N K"], g: Float[Tensor, "N K"], tail: Tail) -> Float[Tensor, " N"]:
    """`paper` or `renormalised` of `top_k`, on the candidates' log π_θ and log π_g, whoever chose them."""
    if tail == "paper":
        advantage = s.softmax(-1) * (g - s)
        return -(advantage.detach() * s).sum(-1)
    return reverse_kl(s.log_softmax(-1), g.log_softmax(-1))


def _with_rest(
    log_probs: Float[Tensor, "N V"], candidates: Int[Tensor, "N K"], kept: Float[Tensor, "N K"]
) -> Float[Tensor, "N K+1"]:
    """Appends the log of the mass outside of the candidates."""
    rest = log_probs.scatter(-1, candidates, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([kept, rest], dim=-1)
