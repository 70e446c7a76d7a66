"""Computes attention by matrix products: for one query per sequence (decoding) and for whole sequences (training).

On CPUs, torch's fused attention parallelises over queries, of which decoding has one per sequence, and its kernel does
not use the CPU's bf16 instructions. Both functions are in transformers' registry, so that every architecture which uses
the registry can use them; cases that they do not cover go to torch's own. (Torch computes the softmax of bf16 scores in
float32, and rounds the result.)
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SDPA, MATMUL = "sdpa", "hopd_matmul"
GROUPED = {SDPA: "hopd_grouped", MATMUL: "hopd_grouped_matmul"}
"""Maps the attention of a model's other passes to its attention while decoding."""
QUERIES = 128  # per block: few enough to skip nearly half of the scores, enough for fast products


def grouped_attention(
    module: nn.Module,
    query: Float[Tensor, "R H Q W"],
    key: Float[Tensor, "R G K W"],
    value: Float[Tensor, "R G K V"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    others: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward,
    **options: Any,
) -> tuple[Float[Tensor, "R Q H V"], None]:
    """Attends with one query per sequence: the H / G heads that share a key head form one matrix product.

    Keys and values are the whole cache, which is contiguous: nothing is copied, unless they were just made of latents.
    `attention_mask` hides unused positions. Several queries per sequence, a position bias and a mask for each head go
    to `others`.
    """
    rows, heads, queries, width = query.shape
    of_heads = attention_mask is not None and attention_mask.shape[1] > 1
    if queries > 1 or of_heads or options.get("position_bias") is not None:
        return others(module, query, key, value, attention_mask, scaling=scaling, **options)
    if prefers_fused(query):
        return fused_grouped_attention(query[:, :, 0], key, value, attention_mask, scaling)[:, None], None
    groups, length = key.shape[1:3]
    scaled = query * (width**-0.5 if scaling is None else scaling)
    scores = scaled.reshape(rows * groups, heads // groups, width) @ key.reshape(rows * groups, length, width).mT
    if attention_mask is not None:
        by_group = scores.view(rows, groups, heads // groups, length)
        if attention_mask.dtype == torch.bool:
            by_group.masked_fill_(~attention_mask, float("-inf"))
        else:
            by_group += attention_mask
    mixed = scores.softmax(-1) @ value.reshape(rows * groups, length, -1)
    return mixed.view(rows, 1, heads, -1), None


def prefers_fused(query: Tensor) -> bool:
    """Tells whether torch's fused kernels are faster for one query per sequence: on GPUs only."""
    return not query.is_cpu


def fused_grouped_attention(
    query: Float[Tensor, "R H W"],
    key: Float[Tensor, "R G K W"],
    value: Float[Tensor, "R G K V"],
    mask: Tensor | None,
    scaling: float | None = None,
) -> Float[Tensor, "R H V"]:
    """Attends with one query per sequence, by torch's fused kernels: the H / G heads that share a key head become the
    queries of one sequence.

    Keys and values are not repeated. Scores stay in float32 up to the softmax, whereas products of bf16 matrices round
    them. `mask` (R or 1, 1, 1, K) is added to the scores, or hides positions where it is false.
    """
    rows, heads, width = query.shape
    groups, length = key.shape[1:3]
    together = query.reshape(rows, groups, heads // groups, width)
    if mask is not None:
        mask = mask.expand(rows, groups, heads // groups, length)
    mixed = nn.functional.scaled_dot_product_attention(together, key, value, attn_mask=mask, scale=scaling)
    return mixed.reshape(rows, heads, -1)


class BlockwiseAttention(torch.autograd.Function):
    """Computes softmax(Q Kᵀ · scale, causal) V with Q (B, H, L, W), K (B, G, L, W), V (B, G, L, U).

    H / G query heads share a key head. Attention weights are not stored but recomputed in the backward pass, as in
    FlashAttention.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        q, k, v = _grouped(query, key), key.flatten(0, 1), value.flatten(0, 1)
        mixed = q.new_empty(*q.shape[:3], v.shape[-1])
        for block, weights in _weights(q, k, scale):
            mixed[:, :, block] = (weights @ v[:, : block.stop]).view(*mixed[:, :, block].shape)
        return mixed.view(*query.shape[:3], v.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value = ctx.saved_tensors
        q, k, v, g = _grouped(query, key), key.flatten(0, 1), value.flatten(0, 1), _grouped(grad, value)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, weights in _weights(q, k, ctx.scale):
            past = slice(0, block.stop)
            g_block = g[:, :, block].flatten(1, 2)
            dv[:, past] += weights.mT @ g_block
            d_weights = g_block @ v[:, past].mT
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype).mul_(ctx.scale)
            dq[:, :, block] = (d_scores @ k[:, past]).view(*dq[:, :, block].shape)
            dk[:, past] += d_scores.mT @ q[:, :, block].flatten(1, 2)
        return dq.view(query.shape), dk.view(key.shape), dv.view(value.shape), None


def _grouped(x: Float[Tensor, "B H L W"], key: Float[Tensor, "B G L V"]) -> Float[Tensor, "N S L W"]:
    """Joins sequences and key heads in one axis; the next axis holds the heads that share a key head."""
    rows, heads, length, width = x.shape
    return x.reshape(rows * key.shape[1], heads // key.shape[1], length, width)


def _weights(
    q: Float[Tensor, "N S L W"], k: Float[Tensor, "N L W"], scale: float
) -> Iterator[tuple[slice, Float[Tensor, "N M K"]]]:
    """Yields blocks of queries, with their weights over all keys up to the block's last."""
    length = q.shape[2]
    size = -(-length // -(-length // QUERIES))  # blocks of nearly equal size
    for start in range(0, length, size):
        block = slice(start, min(start + size, length))
        scores = (q[:, :, block].flatten(1, 2) * scale) @ k[:, : block.stop].mT
        queries = block.stop - block.start
        square = scores.view(len(q), -1, queries, block.stop)[..., block.start :]
        square += _causal_mask(queries, square.dtype, square.device)
        yield block, scores.softmax(-1)


def _causal_mask(size: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "Q Q"]:
    """Returns a mask to add to a block's scores: on a CPU this is several times as fast as `masked_fill`."""
    return torch.full((size, size), float("-inf"), dtype=dtype, device=device).triu(1)


def matmul_attention(
    module: nn.Module,
    query: Float[Tensor, "B H L W"],
    key: Float[Tensor, "B G K W"],
    value: Float[Tensor, "B G K U"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "B L H U"], None]:
    """Attends within whole sequences without padding. Calls with a mask, a cache or dropout go to torch's own."""
    plain = attention_mask is None and query.shape[2] == key.shape[2] and not options.get("dropout")
    if not plain or options.get("position_bias") is not None or not getattr(module, "is_causal", True):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    apply: Callable[..., Tensor] = BlockwiseAttention.apply
    return apply(query, key, value, scale).transpose(1, 2), None


AttentionInterface.register(MATMUL, matmul_attention)
AttentionInterface.register(GROUPED[SDPA], grouped_attention)
AttentionInterface.register(GROUPED[MATMUL], partial(grouped_attention, others=matmul_attention))
for name in (MATMUL, *GROUPED.values()):
    AttentionMaskInterface.register(name, sdpa_mask)
