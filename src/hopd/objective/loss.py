"""Computes the loss of a micro-batch: an objective's losses per token, weighted and summed, never averaged."""

from dataclasses import replace

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
from hopd.objective.stop_class import StopClass


def distillation_loss(
    objective: Objective,
    head: Head,
    hidden: Float[Tensor, "N D"],
    signal: Signal,
    at: LossTokens,
    temperature: float = 1.0,
    chunk_bytes: int | None = None,
    compares: bool = False,
    stop: StopClass | None = None,
) -> tuple[Float[Tensor, ""], TokenStatistics]:
    """Returns Σ_t weight_t · loss_t, and each token's statistics without gradient.

    The loss is a sum: the caller divides it once, by the loss tokens of the whole step. `hidden` are the states from
    which the student's `head` predicts each token of `at`; `temperature` is the rollout's; `chunk_bytes` limits the
    float32 logits in memory (default: `chunk_bytes_on`). With `compares`, the statistics have the `surplus`, if the
    objective needs the whole vocabulary anyway. `stop` scores its ends as one action.
    """
    compares = compares and objective.needs is Detail.VOCABULARY
    own = at.tokens
    if stop is not None:
        signal, at = stop.signal(signal), replace(at, tokens=stop.tokens(own))
    later = None
    if objective.gamma:
        later = _credit(objective.gamma, head, hidden, signal, at, temperature, chunk_bytes, stop)
    prefixes = PrefixSums(at.row)

    def terms(logits: Float[Tensor, "n V"], rows: slice) -> tuple[Tensor, Tensor]:
        policy, unmerged = tempered(logits, temperature), None
        if stop is not None:
            policy, unmerged = stop.merged(policy), log_prob_of(policy, own[rows]).detach()
        here = Positions(policy, signal, at, rows, prefixes, later, unmerged)
        loss = objective.per_token(here)
        columns = [loss, here.log_ratio, here.sampled_log_prob]
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
    stop: StopClass | None,
) -> Float[Tensor, " N"]:
    """Computes all signals first, in a pass over the head without gradient; `at` must hold the whole responses."""

    def terms(logits: Float[Tensor, "n V"], rows: slice) -> tuple[Tensor, Tensor]:
        tokens, policy = at.tokens[rows], tempered(logits, temperature)
        policy = policy if stop is None else stop.merged(policy)
        log_ratio = signal.log_prob(rows, tokens) - log_prob_of(policy, tokens)
        return log_ratio, log_ratio[:, None]

    _, log_ratio = chunked_loss(head, hidden, terms, chunk_bytes)
    return discounted_credit(log_ratio[:, 0], at.row, at.position, gamma)
