"""Defines the horizons that depend on the step alone: full, truncated, random, progressive, staged.

They ignore the evidence and have no state: the same step has the same decision, before and after a resume. T below is
`full_tokens`, the full length of a rollout in tokens. All raise `RecipeError` for values out of range.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hopd.errors import RecipeError, shown
from hopd.horizon.controller import Decision, Evidence


@dataclass(frozen=True)
class Cut:
    """Has the options of every horizon that cuts rollouts: the number of `rollouts` of a step (None: the recipe's), and
    how many of them, the `whole` ones, run to their own end although the horizon is shorter. With
    `sketches` the gradients of a step's blocks are measured, and written to metrics.jsonl."""

    full_tokens: int
    rollouts: int | None = field(default=None, kw_only=True)
    whole: int | None = field(default=None, kw_only=True)
    sketches: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        at_least("full_tokens", self.full_tokens, 1)
        for name, value in {"rollouts": self.rollouts, "whole": self.whole}.items():
            if value is not None:
                at_least(f"horizon {name}", value, 1)
        if self.rollouts is not None and self.whole is not None and self.whole > self.rollouts:
            raise RecipeError(f"horizon whole must be at most rollouts = {self.rollouts}, got {self.whole}")
        _yes_or_no("sketches", self.sketches)

    def spend(self, tokens: int, reason: str) -> Decision:
        """Returns the decision for a horizon of `tokens`, with these rollouts."""
        if self.whole:
            reason += f", {self.whole} rollouts whole"
        return Decision(tokens, reason, self.rollouts, self.whole or 0)


@dataclass(frozen=True)
class Schedule(Cut):
    """Adds the option of every schedule: whether rollouts are `continues`, not cut at the horizon, but continued by
    that many tokens in each step until they end. Then all are whole, unless `whole` says how many."""

    continues: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _yes_or_no("continue", self.continues)

    def spend(self, tokens: int, reason: str) -> Decision:
        """Returns the decision for a horizon of `tokens`, with the schedule's rollouts."""
        if not self.continues:
            return super().spend(tokens, reason)
        return replace(super().spend(tokens, f"{reason}, continued"), whole=self.whole, continues=True)

    def observe(self, evidence: Evidence) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Full(Schedule):
    """Lets every rollout run to its full length: plain OPD, the paper's baseline."""

    def decide(self, step: int) -> Decision:
        return self.spend(self.full_tokens, f"full rollouts: {self.full_tokens} tokens")


@dataclass(frozen=True)
class OfLength(Schedule):
    """Has a length H: H = ρ · T with ρ `ratio`, or H = `tokens`. H is at least 1."""

    ratio: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.ratio is None) == (self.tokens is None):
            raise RecipeError("the horizon needs either ratio or tokens: write ratio: 0.1, or tokens: 512")
        if self.ratio is not None and (isinstance(self.ratio, bool) or not isinstance(self.ratio, int | float)):
            raise RecipeError(
                f"horizon ratio must be a number in (0, 1], got {shown(self.ratio)} (YAML reads 1e-1 as text; write "
                "0.1)"
            )
        if self.ratio is not None and not 0 < self.ratio <= 1:
            hint = f" (did you mean tokens: {self.ratio:.10g}?)" if self.ratio > 1 else ""
            raise RecipeError(f"horizon ratio must be in (0, 1], got {self.ratio:.10g}{hint}")
        if self.tokens is not None:
            at_least("horizon tokens", self.tokens, 1)
            if self.tokens > self.full_tokens:
                raise RecipeError(
                    f"horizon tokens must be at most the full length {self.full_tokens}, got {self.tokens}; "
                    "raise rollout.full_tokens or write controller: full"
                )

    @property
    def length(self) -> int:
        """Returns H in tokens."""
        if self.tokens is not None:
            return self.tokens
        assert self.ratio is not None
        return max(1, round(self.ratio * self.full_tokens))


@dataclass(frozen=True)
class Truncated(OfLength):
    """Cuts all rollouts at a constant H: TOPD (Eq. 12)."""

    def decide(self, step: int) -> Decision:
        if self.ratio is None:
            return self.spend(self.length, f"truncated: {self.length} of {self.full_tokens} tokens")
        return self.spend(self.length, f"truncated: {self.ratio:g} of {self.full_tokens} = {self.length} tokens")


@dataclass(frozen=True)
class RandomHorizon(OfLength):
    """Draws the horizon of every step, with the mean H of `truncated`: a control for rules that move the horizon.

    It is uniform over the widest range around H that lies between 1 and T, and a function of `seed` and the step alone,
    so unlike those rules it has no limit to its changes. KAT's control is nearest (2606.09471): random stops of about
    the same mean length, drawn for each rollout.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("horizon seed", self.seed, 0)

    def decide(self, step: int) -> Decision:
        spread = min(self.length - 1, self.full_tokens - self.length)
        uniform = random.Random(f"{self.seed} {step}").random()  # the same in every version of Python
        tokens = self.length - spread + int(uniform * (2 * spread + 1))
        return self.spend(tokens, f"random: {tokens} tokens, {self.length} in the mean")


@dataclass(frozen=True)
class Progressive(Schedule):
    """Grows the horizon with the step: POPD (Eq. 11), H_k = min(T, H_0 + ΔH · ⌊k / Δk⌋).

    `start` is H_0 and `increment` ΔH, in tokens; `every` is Δk, in steps.
    """

    start: int
    increment: int
    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("horizon start", self.start, 1)
        at_least("horizon increment", self.increment, 1)
        at_least("horizon every", self.every, 1)
        at_most_full(self.start, self.full_tokens)

    def decide(self, step: int) -> Decision:
        grown = self.start + self.increment * (step // self.every)
        if grown >= self.full_tokens:
            return self.spend(self.full_tokens, f"progressive: grown to the full {self.full_tokens} tokens")
        return self.spend(
            grown, f"progressive: {self.start} + {self.increment} · ⌊{step} / {self.every}⌋ = {grown} tokens"
        )


@dataclass(frozen=True)
class Staged(Schedule):
    """Keeps one horizon per stage: `stages` maps the first step of each stage to its tokens. One begins at step 0."""

    stages: dict[int, int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.stages, Mapping):
            raise RecipeError(f"horizon stages map steps to tokens: write stages: {{0: 512}}, got {shown(self.stages)}")
        if 0 not in self.stages:
            raise RecipeError("horizon stages must begin at step 0: write stages: {0: 512, 100: 1024}")
        for step, tokens in self.stages.items():
            at_least("the step of a horizon stage", step, 0)
            at_least("the tokens of a horizon stage", tokens, 1)
            if tokens > self.full_tokens:
                raise RecipeError(
                    f"the stage from step {step} has {tokens} tokens, more than the full length {self.full_tokens}"
                )

    def decide(self, step: int) -> Decision:
        begun = max(start for start in self.stages if start <= step)
        return self.spend(
            self.stages[begun], f"staged: {self.stages[begun]} of {self.full_tokens} tokens from step {begun}"
        )


def at_least(name: str, value: int, least: int) -> None:
    """Raises `RecipeError` unless an option is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecipeError(f"{name} must be a whole number, got {shown(value)}")
    if value < least:
        raise RecipeError(f"{name} must be at least {least}, got {shown(value)}")


def at_most_full(start: int, full_tokens: int) -> None:
    """Raises `RecipeError` for a horizon that begins longer than the full length."""
    if start > full_tokens:
        raise RecipeError(f"horizon start must be at most the full length {full_tokens}, got {start}")


def _yes_or_no(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise RecipeError(f"horizon {name} must be true or false, got {shown(value)}")
