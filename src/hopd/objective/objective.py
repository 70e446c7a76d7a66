"""The objective of a run: estimator × divergence × credit, as a sum over loss tokens.

Estimator  where the divergence's gradient comes from: the `sampled` token, a `top_k`, the `full` vocabulary
Divergence which one, for `full`: reverse KL, forward KL, JSD(β). The other two estimate the reverse KL
Credit     γ: 0 token-level (the default, and the paper's "OPD"), 1 sequence-level, between: discounted

The student's policy, and the teacher's, are their softmax at the rollout's temperature, on both sides.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopd.errors import RecipeError
from hopd.objective import divergence, estimator
from hopd.objective.credit import discounted_credit
from hopd.objective.estimator import Tail
from hopd.objective.head import Head, chunked_loss
from hopd.objective.signal import Detail, Signal, log_prob_of, tempered


@dataclass(frozen=True)
class LossTokens:
    """The N response tokens that an optimiser step looks at in one micro-batch, in one flat list.

    `row` and `position` say where a token stands (rollout of the micro-batch, place in the response from 0),
    `behaviour` is the log-prob under the policy that sampled it, `weight` its share in the loss (0: none).
    """

    tokens: Int[Tensor, " N"]
    row: Int[Tensor, " N"]
    position: Int[Tensor, " N"]
    behaviour: Float[Tensor, " N"]
    weight: Float[Tensor, " N"]


class Statistics(NamedTuple):
    """Per token, without gradient: the unweighted loss, r_t, and log π_θ(y_t) of the policy that was updated."""

    loss: Float[Tensor, " N"]
    log_ratio: Float[Tensor, " N"]
    log_prob: Float[Tensor, " N"]


@dataclass(frozen=True)
class Objective:
    """Raises `RecipeError` for combinations that mean nothing."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # for the recipe, which reads this class as one of its sections

    estimator: Literal["sampled", "top_k", "full"] = "full"
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    beta: float = 0.5
    k: int = 16
    tail: Tail = "paper"
    candidates: Literal["student", "teacher"] = "student"
    gamma: float = 0.0
    control_variate: bool = False
    importance_cap: float | None = None

    def __post_init__(self) -> None:
        if self.divergence != "reverse_kl" and self.estimator != "full":
            raise RecipeError(
                f"objective: {self.estimator!r} estimates the reverse KL; for {self.divergence} write estimator: full"
            )
        if not 0 < self.beta < 1:
            raise RecipeError(
                f"objective: beta must lie between 0 and 1, got {self.beta:g}; the ends are divergence: forward_kl and "
                "reverse_kl"
            )
        if self.k < 1:
            raise RecipeError(f"objective: k must be at least 1, got {self.k}")
        if self.candidates == "teacher" and self.estimator != "top_k":
            raise RecipeError(f"objective: candidates belongs to estimator: top_k, not to {self.estimator!r}")
        if self.candidates == "teacher" and self.tail == "bucket":
            raise RecipeError(
                "objective: tail: bucket needs the whole vocabulary of the teacher; with candidates: teacher write "
                "tail: paper or renormalised"
            )
        if not 0 <= self.gamma <= 1:
            raise RecipeError(
                f"objective: gamma must be from 0 (token-level) to 1 (sequence-level), got {self.gamma:g}"
            )
        for option, value in [
            ("gamma", self.gamma),
            ("control_variate", self.control_variate),
            ("importance_cap", self.importance_cap),
        ]:
            if value and self.estimator != "sampled":
                raise RecipeError(f"objective: {option} belongs to estimator: sampled, not to {self.estimator!r}")
        if self.importance_cap is not None and self.importance_cap <= 0:
            raise RecipeError(f"objective: importance_cap must be positive, got {self.importance_cap:g}")

    @property
    def needs(self) -> Detail:
        """What the teacher must give."""
        if self.estimator == "sampled" and not self.control_variate:
            return Detail.SAMPLED
        return Detail.TOP_K if self.candidates == "teacher" else Detail.VOCABULARY

    def loss(
        self,
        head: Head,
        hidden: Float[Tensor, "N D"],
        signal: Signal,
        at: LossTokens,
        temperature: float = 1.0,
        chunk_bytes: int | None = None,
    ) -> tuple[Float[Tensor, ""], Statistics]:
        """Σ_t weight_t · loss_t: a sum, for the caller to divide once by the loss tokens of the whole step.

        `hidden` are the states from which the student's `head` predicts each token of `at`.
        """
        credit = self._credit(head, hidden, signal, at, temperature, chunk_bytes) if self.gamma else None

        def terms(logits: Float[Tensor, "n V"], rows: slice) -> tuple[Tensor, Tensor]:
            logits = tempered(logits, temperature)
            tokens = at.tokens[rows]
            if self.estimator == "sampled":
                log_prob = log_prob_of(logits, tokens)
                log_ratio = (signal.log_prob(rows, tokens) - log_prob).detach()
                loss = estimator.sampled(
                    log_prob,
                    advantage=(log_ratio if credit is None else credit[rows]) - self._baseline(logits, signal, rows),
                    importance=None
                    if self.importance_cap is None
                    else estimator.importance_ratio(log_prob, at.behaviour[rows], self.importance_cap),
                )
            elif self.candidates == "teacher":
                student = logits.log_softmax(-1)
                log_prob = student.gather(-1, tokens[:, None])[:, 0]
                log_ratio = signal.log_prob(rows, tokens) - log_prob
                candidates, likely = signal.top_k(rows, self.k)
                loss = estimator.among(student.gather(-1, candidates), likely, self.tail)
            else:
                student, teacher = logits.log_softmax(-1), signal.log_probs(rows)
                log_prob = student.gather(-1, tokens[:, None])[:, 0]
                log_ratio = teacher.gather(-1, tokens[:, None])[:, 0] - log_prob
                loss = self._divergence(student, teacher)
            statistics = torch.stack([loss, log_ratio, log_prob], dim=-1)
            return at.weight[rows] * loss, statistics

        total, statistics = chunked_loss(head, hidden, terms, chunk_bytes)
        return total, Statistics(*statistics.unbind(-1))

    def _divergence(self, student: Float[Tensor, "n V"], teacher: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
        if self.estimator == "top_k":
            return estimator.top_k(student, teacher, self.k, self.tail)
        if self.divergence == "jsd":
            return divergence.jsd(student, teacher, self.beta)
        return {"reverse_kl": divergence.reverse_kl, "forward_kl": divergence.forward_kl}[self.divergence](
            student, teacher
        )

    def _baseline(self, logits: Float[Tensor, "n V"], signal: Signal, rows: slice) -> Float[Tensor, " n"] | float:
        """b_t = E[r_t] = −KL(π_θ ‖ π_g): a control variate that leaves the expected gradient as it is."""
        if not self.control_variate:
            return 0.0
        return -divergence.reverse_kl(logits.detach().log_softmax(-1), signal.log_probs(rows))

    @torch.no_grad()
    def _credit(
        self, head: Head, hidden: Tensor, signal: Signal, at: LossTokens, temperature: float, chunk_bytes: int | None
    ) -> Float[Tensor, " N"]:
        """Future signals first, in a pass over the head without gradient; `at` must hold the whole response."""

        def terms(logits: Float[Tensor, "n V"], rows: slice) -> tuple[Tensor, Tensor]:
            log_prob = log_prob_of(tempered(logits, temperature), at.tokens[rows])
            log_ratio = signal.log_prob(rows, at.tokens[rows]) - log_prob
            return log_ratio, log_ratio[:, None]

        _, log_ratio = chunked_loss(head, hidden, terms, chunk_bytes)
        return discounted_credit(log_ratio[:, 0], at.row, at.position, self.gamma)
