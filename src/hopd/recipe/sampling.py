"""Holds the sampling settings of a rollout as plain numbers; `hopd.rollout.sampling` draws tokens with them."""

from dataclasses import dataclass

from hopd.errors import RecipeError


@dataclass(frozen=True)
class Sampling:
    """Sets how tokens are sampled. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep all tokens.

    Raises `RecipeError` for a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise RecipeError(f"temperature must be at least 0 (0: greedy), got {self.temperature:g}")
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p must be in (0, 1], got {self.top_p:g}")
        if self.top_k < 0:
            raise RecipeError(f"top_k must be at least 0 (0: all tokens), got {self.top_k}")
