"""Holds the tokens that carry loss, and both models' log-probs of them: all that an estimator sees.

Both policies are softmaxes at the rollout's temperature.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from hopd.objective.importance import PrefixSums, truncated
from hopd.objective.signal import Signal, log_prob_of


@dataclass(frozen=True)
class LossTokens:
    """Lists the N response tokens of one micro-batch, flat: rollout by rollout, each in the order of its positions.

    `row` is the index of a token's rollout in the micro-batch, `position` its place in the response from 0,
    `behaviour` its log-prob under the policy that sampled it, and `weight` its weight in the loss (0: no loss). `age`
    says how many steps ago it was sampled (None: all in this step).
    """

    tokens: Int[Tensor, " N"]
    row: Int[Tensor, " N"]
    position: Int[Tensor, " N"]
    behaviour: Float[Tensor, " N"]
    weight: Float[Tensor, " N"]
    age: Int[Tensor, " N"] | None = None


class TokenStatistics(NamedTuple):
    """Records each token's unweighted loss, r_t, and log π_θ(y_t) before the update, without gradient. `surplus` is the
    teacher's entropy minus the student's, in nats, where it was asked for."""

    loss: Float[Tensor, " N"]
    log_ratio: Float[Tensor, " N"]
    log_prob: Float[Tensor, " N"]
    surplus: Float[Tensor, " N"] | None = None


@dataclass
class Positions:
    """Gives an estimator a block of n loss tokens, the slice `rows` of `loss_tokens`. Values are computed on demand.

    `logits` are the student's at the rollout's temperature. Gradients flow into the student's values only. `prefixes`
    is shared by all blocks. `later` is the discounted credit of all N tokens, or None where γ is 0. With `stop: class`
    all values are of the merged ends, `tokens` too, and `unmerged` is the log π_θ of the very token that was sampled.
    """

    logits: Float[Tensor, "n V"]
    signal: Signal
    loss_tokens: LossTokens
    rows: slice
    prefixes: PrefixSums
    later: Float[Tensor, " N"] | None = None
    unmerged: Float[Tensor, " n"] | None = None

    @property
    def tokens(self) -> Int[Tensor, " n"]:
        """Returns the tokens y_t."""
        return self.loss_tokens.tokens[self.rows]

    @property
    def behaviour(self) -> Float[Tensor, " n"]:
        """Returns log μ(y_t), under the policy that sampled y_t."""
        return self.loss_tokens.behaviour[self.rows]

    @cached_property
    def student(self) -> Float[Tensor, "n V"]:
        """Returns log π_θ over the vocabulary."""
        return self.logits.log_softmax(-1)

    @cached_property
    def teacher(self) -> Float[Tensor, "n V"]:
        """Returns log π_g over the vocabulary. Available only where the objective needs `Detail.VOCABULARY`."""
        return self.signal.log_probs(self.rows)

    def teacher_top_k(self, k: int) -> tuple[Int[Tensor, "n K"], Float[Tensor, "n K"]]:
        """Returns the teacher's k most likely tokens and their log π_g, most likely first.

        Available only where the objective needs `Detail.TOP_K` or more.
        """
        return self.signal.top_k(self.rows, k)

    @cached_property
    def log_prob(self) -> Float[Tensor, " n"]:
        """Returns log π_θ(y_t)."""
        return self._of_tokens(self.student) if "student" in vars(self) else log_prob_of(self.logits, self.tokens)

    @cached_property
    def teacher_log_prob(self) -> Float[Tensor, " n"]:
        """Returns log π_g(y_t)."""
        known = "teacher" in vars(self)
        return self._of_tokens(self.teacher) if known else self.signal.log_prob(self.rows, self.tokens)

    @property
    def log_ratio(self) -> Float[Tensor, " n"]:
        """Returns r_t = log π_g(y_t) − log π_θ(y_t) (Eq. 1), detached."""
        return (self.teacher_log_prob - self.log_prob).detach()

    @property
    def credit(self) -> Float[Tensor, " n"]:
        """Returns Σ_{k≥t} γ^{k−t} r_k (Eq. 5), detached; where γ is 0, this is r_t."""
        return self.log_ratio if self.later is None else self.later[self.rows]

    def importance(self, cap: float) -> Float[Tensor, " n"]:
        """Returns min(π_θ(y_t) / μ(y_t), cap), detached: for a loss that depends on the sampled y_t."""
        return truncated(self._log_importance, cap)

    def prefix_importance(self, cap: float) -> Float[Tensor, " n"]:
        """Returns min(Π_{s<t} π_θ(y_s) / μ(y_s), cap), detached: for a loss that depends on y_<t and not on y_t.

        The product runs over the loss tokens of the rollout before y_t, so it begins where a loss window begins: there
        the prefix counts as given. Every block must ask for it, or the ratios of later ones are NaN.
        """
        return truncated(self.prefixes.before(self.rows, self._log_importance), cap).to(self.logits.dtype)

    @property
    def sampled_log_prob(self) -> Float[Tensor, " n"]:
        """Returns log π_θ of the token that was sampled, which is what `behaviour` compares with: given the prefix, its
        ratio to μ is unbiased for a loss of merged ends too."""
        return self.log_prob if self.unmerged is None else self.unmerged

    @property
    def _log_importance(self) -> Float[Tensor, " n"]:
        return self.sampled_log_prob - self.behaviour

    def _of_tokens(self, log_probs: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
        return log_probs.gather(-1, self.tokens[:, None])[:, 0]
