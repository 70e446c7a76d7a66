"""The tokens that carry loss, and what both models say about them: all that an estimator sees.

The student's policy, and the teacher's, are their softmax at the rollout's temperature, on both sides.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from hopd.objective.signal import Signal, log_prob_of


@dataclass(frozen=True)
class LossTokens:
    """The N response tokens that an optimiser step looks at in one micro-batch, in one flat list.

    `row` and `position` give a token's place (rollout of the micro-batch, place in the response from 0),
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


@dataclass
class Positions:
    """A block of n loss tokens, `rows` of the list `loss_tokens`. What no estimator asks for is not computed.

    `logits` are the student's at the rollout's temperature. Gradients flow into what is the student's.
    """

    logits: Float[Tensor, "n V"]
    signal: Signal
    loss_tokens: LossTokens
    rows: slice
    later: Float[Tensor, " N"] | None = None

    @property
    def tokens(self) -> Int[Tensor, " n"]:
        """y_t."""
        return self.loss_tokens.tokens[self.rows]

    @property
    def behaviour(self) -> Float[Tensor, " n"]:
        """log μ(y_t), of the policy that sampled it."""
        return self.loss_tokens.behaviour[self.rows]

    @cached_property
    def student(self) -> Float[Tensor, "n V"]:
        """log π_θ over the vocabulary."""
        return self.logits.log_softmax(-1)

    @cached_property
    def teacher(self) -> Float[Tensor, "n V"]:
        """log π_g over the vocabulary. Only where the objective needs `Detail.VOCABULARY`."""
        return self.signal.log_probs(self.rows)

    def teacher_top_k(self, k: int) -> tuple[Int[Tensor, "n K"], Float[Tensor, "n K"]]:
        """Gives the teacher's k most likely tokens and their log π_g. Only where the objective needs `Detail.TOP_K`."""
        return self.signal.top_k(self.rows, k)

    @cached_property
    def log_prob(self) -> Float[Tensor, " n"]:
        """log π_θ(y_t)."""
        return self._of_tokens(self.student) if "student" in vars(self) else log_prob_of(self.logits, self.tokens)

    @cached_property
    def teacher_log_prob(self) -> Float[Tensor, " n"]:
        """log π_g(y_t)."""
        known = "teacher" in vars(self)
        return self._of_tokens(self.teacher) if known else self.signal.log_prob(self.rows, self.tokens)

    @property
    def log_ratio(self) -> Float[Tensor, " n"]:
        """r_t = log π_g(y_t) − log π_θ(y_t) (Eq. 1), detached."""
        return (self.teacher_log_prob - self.log_prob).detach()

    @property
    def credit(self) -> Float[Tensor, " n"]:
        """Σ_{k≥t} γ^{k−t} r_k (Eq. 5), which is r_t where γ is 0; detached."""
        return self.log_ratio if self.later is None else self.later[self.rows]

    def _of_tokens(self, log_probs: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
        return log_probs.gather(-1, self.tokens[:, None])[:, 0]
