"""What makes one token a row fast on a CPU: attention as grouped matrix products, and weights in oneDNN's own layout.

Torch's matrix products unpack and repack the weights at every call, which few rows do not pay for; small ones in fp32
do better with transposed copies. All of it is put in place for the time of a rollout only. On a GPU nothing is changed.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hopd.attention import GROUPED, attention_of, can_choose_attention
from hopd.model import LanguageModel
from hopd.rollout.cache import attends_everywhere

SMALL = 2**19  # weights of a matrix
Projection = Callable[[Float[Tensor, "*B I"]], Float[Tensor, "*B O"]]


@contextmanager
def decoding(model: LanguageModel, rows: int) -> Iterator[Projection]:
    """Until the block ends, `model` decodes about `rows` rows fast; gives the projection of its head, before
    `Head.shape`. The weights must not change meanwhile."""
    head = model.head
    with ExitStack() as stack:
        if groups_attention(model):
            usual = attention_of(model)
            model.model.set_attn_implementation(GROUPED[usual])
            stack.callback(model.model.set_attn_implementation, usual)
        if not decodes_packed(model):
            yield head.project
            return
        for linear in model.backbone.modules():
            if type(linear) is nn.Linear and "forward" not in vars(linear):
                linear.forward = projection(linear.weight, linear.bias, rows)  # type: ignore[assignment]
                stack.callback(delattr, linear, "forward")
        yield projection(head.weight, head.bias, rows)


def groups_attention(model: LanguageModel) -> bool:
    """Whether one query a row goes to `grouped_attention`."""
    return model.device.type == "cpu" and can_choose_attention(model) and attends_everywhere(model.config)


def decodes_packed(model: LanguageModel) -> bool:
    """Whether a copy of its weights is packed for each rollout."""
    return model.device.type == "cpu" and packs(model.model.dtype)


def decoding_note(model: LanguageModel) -> str:
    """A sentence for people: what one token a row is computed with."""
    dtype = str(model.model.dtype).removeprefix("torch.")
    if model.device.type != "cpu":
        return f"decoding: {dtype} on {model.device}, the model's own attention ({attention_of(model)})"
    grouped = groups_attention(model)
    attention = (
        "grouped attention" if grouped else f"the model's own attention ({attention_of(model)}), which is slower"
    )
    return f"decoding: {dtype}, {attention}, weights {'packed' if decodes_packed(model) else 'as they are'}"


def projection(weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None, rows: int) -> Projection:
    """x Wᵀ + b for so many rows. Calls of oneDNN take longer to begin than small products in fp32 take in all."""
    if weight.numel() > SMALL or weight.dtype != torch.float32:
        return packed(weight, bias, rows)
    transposed = weight.detach().T.contiguous()
    return lambda x: x @ transposed if bias is None else x @ transposed + bias


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
