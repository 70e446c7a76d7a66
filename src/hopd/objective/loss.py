"""Computes the loss of a micro-batch: an objective's losses per token, weighted and summed, never averaged."""

import torch
from jaxtyping import Float
from torch import Tensor

from hopd.objective.credit import discounted_credit
from hopd.objective.detail import Detail
from hopd.objective.divergence import entropy
from hopd.objective.head import Head, chunked_loss
from hopd.objective.importance import PrefixSums
from hopd.objective.objective import Objective
from hopd.objective.positions import LossTokens, Positions, TokenStatistics
from hopd.objective.signal import Signal, log_prob_of, tempered


def distillation_loss(
    objective: Objective,
    head: Head,
    hidden: Float[Tensor, "N D"],
    signal: Signal,
    at: LossTokens,
    temperature: float = 1.0,
    chunk_bytes: int | None = None,
    compares: bool = False,
) -> tuple[Float[Tensor, ""], TokenStatistics]:
    """Returns Σ_t weight_t · loss_t, and each token's statistics without gradient.

    The loss is a sum: the caller divides it once, by the loss tokens of the whole step. `hidden` are the states from
    which the student's `head` predicts each token of `at`; `temperature` is the rollout's; `chunk_bytes` limits the
    float32 logits in memory (default: `chunk_bytes_on`). With `compares`, the statistics have the `surplus`, if the
    objective needs the whole vocabulary anyway.
    """
    compares = compares and objective.needs is Detail.VOCABULARY
    later = _credit(objective.gamma, head, hidden, signal, at, temperature, chunk_bytes) if objective.gamma else None
    prefixes = PrefixSums(at.row)

    def terms(logits: Float[Tensor, "n V"], rows: slice) -> tuple[Tensor, Tensor]:
        here = Positions(tempered(logits, temperature), signal, at, rows, prefixes, later)
        loss = objective.per_token(here)
        columns = [loss, here.log_ratio, here.log_prob]
        if compares:
            columns.append(entropy(here.teacher) - entropy(here.student))
        return at.weight[rows] * loss, torch.stack(columns, dim=-1)

    total, statistics = chunked_loss(head, hidden, terms, chunk_bytes)
    return total, TokenStatistics(*statistics.unbind(-1))


@torch.no_grad()
def _credit(
    gamma: float,
    head: Head,
    hidden: Float[Tensor, "N D"],
    signal: Signal,
    at: LossTokens,
    temperature: float,
    chunk_bytes: int | None,
) -> Float[Tensor, " N"]:
    """Computes all signals first, in a pass over the head without gradient; `at` must hold the whole responses."""

    def terms(logits: Float[Tensor, "n V"], rows: slice) -> tuple[Tensor, Tensor]:
        tokens = at.tokens[rows]
        log_ratio = signal.log_prob(rows, tokens) - log_prob_of(tempered(logits, temperature), tokens)
        return log_ratio, log_ratio[:, None]

    _, log_ratio = chunked_loss(head, hidden, terms, chunk_bytes)
    return discounted_credit(log_ratio[:, 0], at.row, at.position, gamma)
