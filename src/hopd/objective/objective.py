"""Describes objectives as plain data: an estimator and its options. Importing this file does not import torch.

`Sampled`  the sampled token's gradient, with credit γ: 0 token-level, 1 sequence-level, in between discounted
`TopK`     the reverse KL on k likely tokens
`Full`     a divergence over the whole vocabulary: reverse KL, forward KL, JSD(β)
`Custom`   an estimator of your own

All of them implement `Objective`. `hopd.objective.loss` sums their losses. With `stop: class`, they score the ids that
end a rollout as one action (`hopd.objective.stop_class`).
"""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any, ClassVar, Literal, Protocol, get_args

from hopd import plugin
from hopd.errors import RecipeError, shown
from hopd.objective.detail import Detail, Tail

Ends = Literal["token", "class"]


class Objective(Protocol):
    """Defines a loss per token. An estimator of your own has `needs` and `per_token`, perhaps `k`; its γ is 0."""

    @property
    def estimator(self) -> str:
        """Returns the estimator's name in a recipe."""
        ...

    @property
    def needs(self) -> Detail:
        """Returns the least detail that the teacher must return."""
        ...

    @property
    def gamma(self) -> float:
        """Returns γ, the discount of later signals in a token's credit (Eq. 5); 0 means no credit for them."""
        ...

    @property
    def k(self) -> int:
        """Returns the number of most likely tokens that the loss reads; 0 if it reads none, or all."""
        ...

    @property
    def stop(self) -> Ends:
        """Returns whether each id that ends a rollout is scored by itself, or all of them as one action."""
        ...

    # `Positions` and `Tensor` would need torch, which this file does not import.
    def per_token(self, at: Any) -> Any:
        """Returns one loss per position, [n], from `at: Positions`, not averaged. Its gradient is the estimator's."""
        ...


@dataclass(frozen=True)
class Sampled:
    """Computes −A_t log π_θ(y_t) with A_t = Σ_{k≥t} γ^{k−t} r_k, detached: Eq. 6 (γ = 0) to Eq. 4 (γ = 1).

    `control_variate` adds KL_t to A_t: the same mean gradient, less variance. `importance_cap` multiplies by
    min(π_θ(y_t)/μ(y_t), cap), for tokens that older weights μ sampled: given its prefix, token t then has the mean
    gradient that it would have under π_θ. Raises `RecipeError` for values out of range.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # a recipe reads these classes as sections

    estimator: Literal["sampled"] = field(default="sampled", kw_only=True)
    gamma: float = 0.0
    control_variate: bool = False
    importance_cap: float | None = None
    stop: Ends = "token"
    k: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise RecipeError(
                f"objective: gamma must be from 0 (token-level) to 1 (sequence-level), got {self.gamma:g}"
            )
        _check_cap(self.importance_cap)

    @property
    def needs(self) -> Detail:
        return Detail.VOCABULARY if self.control_variate else Detail.SAMPLED

    def per_token(self, at: Any) -> Any:
        from hopd.objective import divergence, estimator

        log_prob, advantage = at.log_prob, at.credit
        if self.control_variate:  # b_t = E[r_t] = −KL(π_θ ‖ π_g) leaves the expected gradient as it is
            advantage = advantage + divergence.reverse_kl(at.student.detach(), at.teacher)
        importance = None if self.importance_cap is None else at.importance(self.importance_cap)
        return estimator.sampled(log_prob, advantage, importance)


@dataclass(frozen=True)
class TopK:
    """Computes the reverse KL on the `k` most likely tokens of the student or the teacher (Table 3: the student's 16).

    `tail` selects how the other tokens count: see `hopd.objective.estimator.top_k`. `importance_cap` is that of `Full`.
    Raises `RecipeError` for k < 1, a cap that is not positive, and `bucket` with the teacher's candidates.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    estimator: Literal["top_k"] = field(default="top_k", kw_only=True)
    k: int = 16
    tail: Tail = "paper"
    candidates: Literal["student", "teacher"] = "student"
    importance_cap: float | None = None
    stop: Ends = "token"
    gamma: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise RecipeError(f"objective: k must be at least 1, got {self.k}")
        if self.candidates == "teacher" and self.tail == "bucket":
            raise RecipeError(
                "objective: tail: bucket needs the whole vocabulary of the teacher; with candidates: teacher write "
                "tail: paper or renormalised"
            )
        _check_cap(self.importance_cap)

    @property
    def needs(self) -> Detail:
        return Detail.TOP_K if self.candidates == "teacher" else Detail.VOCABULARY

    def per_token(self, at: Any) -> Any:
        from hopd.objective import estimator

        if self.candidates == "teacher":
            ids, likely = at.teacher_top_k(self.k)
            loss = estimator.on_candidates(at.student.gather(-1, ids), likely, self.tail)
        else:
            loss = estimator.top_k(at.student, at.teacher, self.k, self.tail)
        return _reached_on_policy(loss, at, self.importance_cap)


@dataclass(frozen=True)
class Full:
    """Computes a divergence over the whole vocabulary; `jsd` uses `beta`.

    `importance_cap` multiplies by min(Π_{s<t} π_θ(y_s)/μ(y_s), cap), detached, where older weights μ sampled: the
    divergence at t does not depend on y_t, only on the prefix, which μ reached more or less often than π_θ would (see
    `hopd.objective.importance`). Raises `RecipeError` unless 0 < beta < 1 and the cap is positive.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    estimator: Literal["full"] = field(default="full", kw_only=True)
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    beta: float = 0.5
    importance_cap: float | None = None
    stop: Ends = "token"
    gamma: ClassVar[float] = 0.0
    k: ClassVar[int] = 0
    needs: ClassVar[Detail] = Detail.VOCABULARY

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise RecipeError(
                f"objective: beta must lie between 0 and 1, got {self.beta:g}; the ends are divergence: forward_kl and "
                "reverse_kl"
            )
        _check_cap(self.importance_cap)

    def per_token(self, at: Any) -> Any:
        from hopd.objective.divergence import forward_kl, jsd, reverse_kl

        if self.divergence == "jsd":
            loss = jsd(at.student, at.teacher, self.beta)
        else:
            loss = (reverse_kl if self.divergence == "reverse_kl" else forward_kl)(at.student, at.teacher)
        return _reached_on_policy(loss, at, self.importance_cap)


@dataclass(frozen=True)
class Custom:
    """Uses an estimator of your own, `estimator: my.module:Name`: a class with `needs` and `per_token`.

    `options` are the arguments of its constructor: all keys of the section but `estimator` and `stop`. Without
    `imports` it is only a name, and cannot be used. Raises
    `RecipeError` if it cannot be imported or constructed, and later if it does not return one loss per position.
    """

    estimator: str
    options: Mapping[str, Any] = field(default_factory=dict)
    stop: Ends = "token"
    imports: InitVar[bool] = True
    made: Any = field(init=False, repr=False, compare=False)
    gamma: ClassVar[float] = 0.0

    def __post_init__(self, imports: bool) -> None:
        if self.stop not in get_args(Ends):
            raise RecipeError(f"objective.stop must be token or class, got {shown(self.stop)}")
        spec, needs = {"estimator": self.estimator, **self.options}, ("needs", "per_token")
        made = plugin.build("objective", "estimator", {}, spec, needs) if imports else None
        object.__setattr__(self, "made", made)

    @property
    def needs(self) -> Detail:
        return Detail(self.made.needs)

    @property
    def k(self) -> int:
        return int(getattr(self.made, "k", 0))

    def per_token(self, at: Any) -> Any:
        loss = self.made.per_token(at)
        if loss.shape != at.tokens.shape:
            raise RecipeError(
                f"objective '{self.estimator}': per_token returned a loss of shape {tuple(loss.shape)}; return "
                f"one number per position, {tuple(at.tokens.shape)}, not averaged"
            )
        return loss


def _check_cap(cap: float | None) -> None:
    if cap is not None and not cap > 0:
        raise RecipeError(f"objective: importance_cap must be positive, got {cap:g}")


def _reached_on_policy(loss: Any, at: Any, cap: float | None) -> Any:
    """Weights a loss that depends on the prefix alone by how much likelier π_θ is than μ to reach that prefix."""
    return loss if cap is None else at.prefix_importance(cap) * loss
