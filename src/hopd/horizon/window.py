"""Which tokens of a rollout carry loss: a span (start, end), apart from how far the rollout was generated.

A window never changes what is sampled, so it saves little; a shorter horizon saves everything behind it. The two
are separate knobs because claims about one are often made with the other.
"""

from dataclasses import dataclass
from typing import Protocol

from hopd.errors import RecipeError

Span = tuple[int, int]


class Window(Protocol):
    def span(self, length: int, uniform: float) -> Span:
        """The loss tokens `start <= t < end` of a rollout of `length` tokens; at least one when there is one.
        `uniform` in [0, 1) is the rollout's own random number, for windows that are drawn."""
        ...


@dataclass(frozen=True)
class Whole:
    """Every generated token."""

    def span(self, length: int, uniform: float = 0.0) -> Span:
        return 0, length


@dataclass(frozen=True)
class _Sized:
    tokens: int

    def __post_init__(self) -> None:
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int) or self.tokens < 1:
            raise RecipeError(f"a loss window needs tokens: a whole number of at least 1, got {self.tokens!r}")


@dataclass(frozen=True)
class First(_Sized):
    """The first `tokens` tokens."""

    def span(self, length: int, uniform: float = 0.0) -> Span:
        return 0, min(self.tokens, length)


@dataclass(frozen=True)
class Last(_Sized):
    """The last `tokens` tokens."""

    def span(self, length: int, uniform: float = 0.0) -> Span:
        return max(0, length - self.tokens), length


@dataclass(frozen=True)
class Random(_Sized):
    """A run of `tokens` tokens that begins anywhere with equal probability: the control for `First` and `Last`."""

    def span(self, length: int, uniform: float) -> Span:
        start = int(uniform * (max(0, length - self.tokens) + 1))
        return start, min(length, start + self.tokens)


@dataclass(frozen=True)
class Segment:
    """From fraction `start` to fraction `end` of the rollout's own length (the paper's segment ablation, Fig. 12)."""

    start: float
    end: float

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise RecipeError(
                f"a segment needs 0 <= start < end <= 1 (fractions of the rollout), got {self.start} and {self.end}"
            )

    def span(self, length: int, uniform: float = 0.0) -> Span:
        """Segments that share an edge share no token, except in a rollout too short to give each its own."""
        if length == 0:
            return 0, 0
        start = min(int(self.start * length), length - 1)
        return start, max(start + 1, int(self.end * length))
