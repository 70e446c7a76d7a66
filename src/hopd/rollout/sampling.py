"""From logits and one uniform a row to one token a row. It knows nothing of models, prompts or caches."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopd.errors import RecipeError


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy. `top_k` 0 and `top_p` 1 cut nothing."""

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

    def draw(
        self, logits: Float[Tensor, "R V"], uniform: Float[Tensor, " R"]
    ) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
        """Tokens, and their log-probs under softmax(logits / temperature)."""
        if self.temperature == 0:
            tokens = logits.argmax(-1)
            return tokens, _picked(logits.log_softmax(-1), tokens)
        log_probs = (logits / self.temperature).log_softmax(-1)
        if self.top_k == 0 and self.top_p == 1:
            tokens = inverse_cdf(log_probs.exp(), uniform)
        else:
            tokens = self._draw_among_likeliest(log_probs, uniform)
        return tokens, _picked(log_probs, tokens)

    def _draw_among_likeliest(self, log_probs: Float[Tensor, "R V"], uniform: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
        """Top-k first, then the fewest of the rest whose mass, renormalised, reaches top-p; never none."""
        size = log_probs.shape[-1]
        likeliest, ids = log_probs.topk(min(self.top_k or size, size), dim=-1)
        probs = likeliest.softmax(-1)
        before = probs.cumsum(-1) - probs
        kept = probs.masked_fill(before >= self.top_p, 0.0)
        return _picked(ids, inverse_cdf(kept, uniform))


def inverse_cdf(weights: Float[Tensor, "R V"], uniform: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
    """The token whose stretch of the cumulated weights holds `uniform` · total. Never one of weight 0."""
    cumulated = weights.cumsum(-1)
    total = cumulated[:, -1]
    below = torch.nextafter(total, torch.zeros_like(total))  # rounding must not lift the target to the total
    target = torch.minimum(uniform.to(total.dtype) * total, below)
    found = torch.searchsorted(cumulated, target[:, None], right=True)[:, 0]
    return found.clamp(max=weights.shape[-1] - 1)  # NaN weights lead past the end; the loss then names the rollout


def _picked(values: Tensor, index: Int[Tensor, " R"]) -> Tensor:
    return values.gather(-1, index[:, None])[:, 0]
