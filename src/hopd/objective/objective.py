"""The objectives of a run as plain data: an estimator and its options. Importing this file does not import torch.

`Sampled`  the sampled token's gradient, with credit γ: 0 token-level, 1 sequence-level, between: discounted
`TopK`     the reverse KL on k likely tokens
`Full`     a divergence over the whole vocabulary: reverse KL, forward KL, JSD(β)

All of them, and an estimator of your own, have what `Objective` lists. `hopd.objective.loss` adds up their losses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, Literal, Protocol

from hopd import plugin
from hopd.errors import RecipeError

Tail = Literal["paper", "renormalised", "bucket"]


class Detail(IntEnum):
    """How much of the teacher's distribution: log-probs of the sampled tokens, of its own most likely ones besides, or
    of every token."""

    SAMPLED = 1
    TOP_K = 2
    VOCABULARY = 3


class Objective(Protocol):
    """What an estimator is. One of your own has `needs` and `per_token`; γ is 0 for it."""

    @property
    def estimator(self) -> str: ...

    @property
    def needs(self) -> Detail:
        """What the teacher must give."""
        ...

    @property
    def gamma(self) -> float:
        """How much a token is credited with the later signals of its rollout (Eq. 5); 0: not at all."""
        ...

    @property
    def k(self) -> int:
        """How many of a distribution's most likely tokens are looked at; 0: another number, or none."""
        ...

    # Positions and Tensor are those of `hopd.objective.positions`, which imports torch.
    def per_token(self, at: Any) -> Any:
        """Gives one loss a position, [n], from `at: Positions`. Its gradient is the estimator's. It is not averaged."""
        ...


@dataclass(frozen=True)
class Sampled:
    """Eq. 6 (γ = 0) to Eq. 4 (γ = 1): −A_t log π_θ(y_t) with A_t = Σ_{k≥t} γ^{k−t} r_k, detached.

    `control_variate` adds KL_t to A_t: the same mean gradient, less variance. `importance_cap` weighs with
    min(π_θ/μ, cap), for several optimiser steps on one set of rollouts. Raises `RecipeError` for values out of range.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # for the recipe, which reads these classes as sections

    estimator: Literal["sampled"] = field(default="sampled", kw_only=True)
    gamma: float = 0.0
    control_variate: bool = False
    importance_cap: float | None = None
    k: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise RecipeError(
                f"objective: gamma must be from 0 (token-level) to 1 (sequence-level), got {self.gamma:g}"
            )
        if self.importance_cap is not None and self.importance_cap <= 0:
            raise RecipeError(f"objective: importance_cap must be positive, got {self.importance_cap:g}")

    @property
    def needs(self) -> Detail:
        return Detail.VOCABULARY if self.control_variate else Detail.SAMPLED

    def per_token(self, at: Any) -> Any:
        from hopd.objective import divergence, estimator

        log_prob, advantage = at.log_prob, at.credit
        if self.control_variate:  # b_t = E[r_t] = −KL(π_θ ‖ π_g) leaves the expected gradient as it is
            advantage = advantage + divergence.reverse_kl(at.student.detach(), at.teacher)
        cap = self.importance_cap
        importance = None if cap is None else estimator.importance_ratio(log_prob, at.behaviour, cap)
        return estimator.sampled(log_prob, advantage, importance)


@dataclass(frozen=True)
class TopK:
    """The reverse KL on the `k` tokens that the student, or the teacher, finds most likely (Table 3: the student, 16).

    `tail` says what becomes of the other tokens: see `hopd.objective.estimator.top_k`. Raises `RecipeError`.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    estimator: Literal["top_k"] = field(default="top_k", kw_only=True)
    k: int = 16
    tail: Tail = "paper"
    candidates: Literal["student", "teacher"] = "student"
    gamma: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise RecipeError(f"objective: k must be at least 1, got {self.k}")
        if self.candidates == "teacher" and self.tail == "bucket":
            raise RecipeError(
                "objective: tail: bucket needs the whole vocabulary of the teacher; with candidates: teacher write "
                "tail: paper or renormalised"
            )

    @property
    def needs(self) -> Detail:
        return Detail.TOP_K if self.candidates == "teacher" else Detail.VOCABULARY

    def per_token(self, at: Any) -> Any:
        from hopd.objective import estimator

        if self.candidates == "teacher":
            ids, likely = at.teacher_top_k(self.k)
            return estimator.among(at.student.gather(-1, ids), likely, self.tail)
        return estimator.top_k(at.student, at.teacher, self.k, self.tail)


@dataclass(frozen=True)
class Full:
    """A divergence over the whole vocabulary. `beta` is that of `jsd`. Raises `RecipeError`."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    estimator: Literal["full"] = field(default="full", kw_only=True)
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    beta: float = 0.5
    gamma: ClassVar[float] = 0.0
    k: ClassVar[int] = 0
    needs: ClassVar[Detail] = Detail.VOCABULARY

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise RecipeError(
                f"objective: beta must lie between 0 and 1, got {self.beta:g}; the ends are divergence: forward_kl and "
                "reverse_kl"
            )

    def per_token(self, at: Any) -> Any:
        from hopd.objective.divergence import forward_kl, jsd, reverse_kl

        if self.divergence == "jsd":
            return jsd(at.student, at.teacher, self.beta)
        return (reverse_kl if self.divergence == "reverse_kl" else forward_kl)(at.student, at.teacher)


@dataclass(frozen=True)
class Own:
    """An estimator of your own, `estimator: my.module:Name`: a class with `needs` and `per_token`, made from `options`.

    Raises `RecipeError` where it cannot be loaded or made, and where its losses are not one a position.
    """

    estimator: str
    options: Mapping[str, Any] = field(default_factory=dict)
    made: Any = field(init=False, repr=False, compare=False)
    gamma: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        spec = {"estimator": self.estimator, **self.options}
        object.__setattr__(self, "made", plugin.build("objective", "estimator", {}, spec, ("needs", "per_token")))

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
                f"objective '{self.estimator}': per_token gives a loss of the shape {tuple(loss.shape)}; it must be "
                f"one number a position, {tuple(at.tokens.shape)}, not averaged"
            )
        return loss
