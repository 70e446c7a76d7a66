"""What makes one token a row fast on a CPU: attention as grouped matrix products, and weights in oneDNN's own layout.

Torch's fused attention parallelises over queries, of which decoding has one a row; its matrix products unpack and
repack the weights at every call, which few rows do not pay for. Both are put in place for the time of a rollout only:
the learner and the teacher compute as they always do. On a GPU nothing is changed.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hopd.model import LanguageModel
from hopd.rollout.cache import attends_everywhere

GROUPED = "hopd_grouped"
Projection = Callable[[Float[Tensor, "*B I"]], Float[Tensor, "*B O"]]


def grouped_attention(
    module: nn.Module,
    query: Float[Tensor, "R H Q W"],
    key: Float[Tensor, "R G K W"],
    value: Float[Tensor, "R G K V"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "R Q H V"], None]:
    """For one query a row: the H / G queries that share a key head are the rows of one matrix product.

    Keys and values of the whole cache, unused room included (`attention_mask` hides it), are contiguous: nothing is
    copied. Softmax in float32. Several queries a row, and what else transformers may ask, go to its own function.
    """
    rows, heads, queries, width = query.shape
    if queries > 1 or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    groups, length = key.shape[1:3]
    scaled = query * (width**-0.5 if scaling is None else scaling)
    scores = scaled.view(rows * groups, heads // groups, width) @ key.view(rows * groups, length, width).mT
    if attention_mask is not None:
        by_group = scores.view(rows, groups, heads // groups, length)
        if attention_mask.dtype == torch.bool:
            by_group.masked_fill_(~attention_mask, float("-inf"))
        else:
            by_group += attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    mixed = weights @ value.view(rows * groups, length, -1)
    return mixed.view(rows, 1, heads, -1), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextmanager
def decoding(model: LanguageModel, rows: int) -> Iterator[Projection]:
    """Until the block ends, `model` decodes about `rows` rows fast; gives the projection of its head, before
    `Head.shape`. The weights must not change meanwhile."""
    head = model.head
    with ExitStack() as stack:
        if model.device.type == "cpu":
            if groups_attention(model):
                usual = _attention(model)
                model.model.set_attn_implementation(GROUPED)
                stack.callback(model.model.set_attn_implementation, usual)
            if decodes_packed(model):
                for linear in model.backbone.modules():
                    if type(linear) is nn.Linear and "forward" not in vars(linear):
                        linear.forward = packed(linear.weight, linear.bias, rows)  # type: ignore[assignment]
                        stack.callback(delattr, linear, "forward")
                yield packed(head.weight, head.bias, rows)
                return
        yield head.project


def groups_attention(model: LanguageModel) -> bool:
    """Whether its attention goes through transformers' registry in the ordinary way; where it does not, it stays."""
    return (
        _attention(model) in ("sdpa", GROUPED)
        and model.model._can_set_attn_implementation()
        and attends_everywhere(model.config)
    )


def decodes_packed(model: LanguageModel) -> bool:
    """Whether a copy of its weights is packed for each rollout."""
    return model.device.type == "cpu" and packs(model.model.dtype)


def decoding_note(model: LanguageModel) -> str:
    """A sentence for people: what one token a row is computed with."""
    dtype = str(model.model.dtype).removeprefix("torch.")
    if model.device.type != "cpu":
        return f"decoding: {dtype} on {model.device}, the model's own attention ({_attention(model)})"
    grouped = groups_attention(model)
    attention = "grouped attention" if grouped else f"the model's own attention ({_attention(model)}), which is slower"
    return f"decoding: {dtype}, {attention}, weights {'packed' if decodes_packed(model) else 'as they are'}"


def _attention(model: LanguageModel) -> str:
    return str(model.model.config._attn_implementation)


def packed(weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None, rows: int) -> Projection:
    """x Wᵀ + b with a copy of W in the layout that oneDNN likes best for so many rows."""
    layout = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)

    def project(x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return torch.ops.mkldnn._linear_pointwise(x, layout, bias, "none", [], "")

    return project


@cache
def packs(dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this CPU, packs weights of `dtype`: tried, since only trying tells."""
    weight, x = torch.ones(16, 16, dtype=dtype), torch.ones(2, 16, dtype=dtype)
    try:
        return bool((packed(weight, None, rows=2)(x) == 16).all())
    except (RuntimeError, AttributeError):
        return False
