"""Chooses which tokens of a rollout carry loss: a span (start, end), independent of how far the rollout goes.

A window never changes what is sampled, so it saves little; a shorter horizon saves the generation of all later tokens.
The two are separate settings, because experiments with one are often read as evidence about the other.
"""

from dataclasses import dataclass
from typing import Protocol

from hopd.errors import RecipeError, shown

Span = tuple[int, int]


class Window(Protocol):
    """Chooses the loss tokens of a rollout."""

    def span(self, length: int, uniform: float) -> Span:
        """Returns the loss tokens `start <= t < end` of a rollout of `length` tokens: at least one, if it has any.

        `uniform` in [0, 1) is the rollout's own random number, for windows with a random place.
        """
        ...


@dataclass(frozen=True)
class Whole:
    """Keeps every generated token."""

    def span(self, length: int, uniform: float = 0.0) -> Span:
        return 0, length


@dataclass(frozen=True)
class _Sized:
    tokens: int

    def __post_init__(self) -> None:
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int) or self.tokens < 1:
            raise RecipeError(f"a loss window needs tokens: a whole number of at least 1, got {shown(self.tokens)}")


@dataclass(frozen=True)
class First(_Sized):
    """Keeps the first `tokens` tokens. Raises `RecipeError` unless `tokens` is a whole number of at least 1."""

    def span(self, length: int, uniform: float = 0.0) -> Span:
        return 0, min(self.tokens, length)


@dataclass(frozen=True)
class Last(_Sized):
    """Keeps the last `tokens` tokens. Raises `RecipeError` like `First`."""

    def span(self, length: int, uniform: float = 0.0) -> Span:
        return max(0, length - self.tokens), length


@dataclass(frozen=True)
class Random(_Sized):
    """Keeps `tokens` consecutive tokens whose start is uniformly random: the control for `First` and `Last`.

    Raises `RecipeError` like `First`.
    """

    def span(self, length: int, uniform: float) -> Span:
        start = int(uniform * (max(0, length - self.tokens) + 1))
        return start, min(length, start + self.tokens)


@dataclass(frozen=True)
class Segment:
    """Keeps the tokens from fraction `start` to fraction `end` of each rollout (the paper's segment ablation, Fig. 12).

    Raises `RecipeError` unless 0 <= start < end <= 1.
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise RecipeError(
                f"a segment needs 0 <= start < end <= 1 (fractions of the rollout), got {self.start} and {self.end}"
            )

    def span(self, length: int, uniform: float = 0.0) -> Span:
        """Returns spans that are disjoint for adjacent segments, unless the rollout is too short for a token each."""
        if length == 0:
            return 0, 0
        start = min(int(self.start * length), length - 1)
        return start, max(start + 1, int(self.end * length))
