"""Draws one token a sequence from logits and a uniform number. It knows nothing of models, prompts or caches."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopd.recipe.sampling import Sampling

BLOCK = 256  # tokens of a large vocabulary whose weights are summed first


def draw_tokens(
    sampling: Sampling, logits: Float[Tensor, "R V"], uniform: Float[Tensor, " R"]
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """Draws a token for each row, and returns them with their log-probs under softmax(logits / temperature), in
    nats."""
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, _picked(logits.log_softmax(-1), tokens)
    scaled = logits if sampling.temperature == 1 else logits / sampling.temperature
    if sampling.top_k or sampling.top_p < 1:
        log_probs = scaled.log_softmax(-1)
        tokens = _draw_among_likeliest(sampling, log_probs, uniform)
        return tokens, _picked(log_probs, tokens)
    # One exponential a logit and no sort: the weights of the draw also sum to the normalizer.
    highest = scaled.amax(-1, keepdim=True)
    weights = (scaled - highest).exp_()
    tokens = inverse_cdf(weights, uniform)
    return tokens, _picked(scaled, tokens) - highest[:, 0] - weights.sum(-1).log()


def _draw_among_likeliest(
    sampling: Sampling, log_probs: Float[Tensor, "R V"], uniform: Float[Tensor, " R"]
) -> Int[Tensor, " R"]:
    """Draws among the top k tokens, and of these among the fewest whose renormalized mass reaches top-p, at least
    one."""
    size = log_probs.shape[-1]
    likeliest, ids = log_probs.topk(min(sampling.top_k or size, size), dim=-1)
    probs = likeliest.softmax(-1)
    before = probs.cumsum(-1) - probs
    kept = probs.masked_fill(before >= sampling.top_p, 0.0)
    return _picked(ids, inverse_cdf(kept, uniform))


def inverse_cdf(weights: Float[Tensor, "R V"], uniform: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
    """Returns the first token whose cumulative weight exceeds `uniform` · total, and never a token of weight 0.

    In a large vocabulary it finds the block of tokens first, then the token in it: sums of short rows are faster and
    more exact than one long cumulative sum.
    """
    rows, size = weights.shape
    if size <= 2 * BLOCK:
        return _first_above(weights.cumsum(-1), uniform)
    blocks = torch.nn.functional.pad(weights, (0, -size % BLOCK)).view(rows, -1, BLOCK)
    up_to = blocks.sum(-1).cumsum(-1)
    block = _first_above(up_to, uniform)
    inside = blocks[torch.arange(rows, device=weights.device), block].cumsum(-1)
    mass = inside[:, -1]
    before = _picked(up_to, block) - mass
    share = (uniform.to(weights.dtype) * up_to[:, -1] - before) / mass
    return (block * BLOCK + _first_above(inside, share.clamp(min=0))).clamp(max=size - 1)


def _first_above(cumulated: Float[Tensor, "R V"], share: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
    """Returns the first index whose cumulative weight exceeds `share` of the total."""
    total = cumulated[:, -1]
    below = torch.nextafter(total, torch.zeros_like(total))  # rounding must not lift the target to the total
    target = torch.minimum(share.to(total.dtype) * total, below)
    found = torch.searchsorted(cumulated, target[:, None], right=True)[:, 0]
    return found.clamp(max=cumulated.shape[-1] - 1)  # NaN weights point past the end; the loss then names the rollout


def _picked(values: Tensor, index: Int[Tensor, " R"]) -> Tensor:
    return values.gather(-1, index[:, None])[:, 0]
