"""Speeds up a model's layers on a CPU during a rollout or an update: matrix products, norms, gated MLPs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hopd.compute import kernels
from hopd.compute.products import for_training, replaced_linears

GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@contextmanager
def fast_layers(model: nn.Module) -> Iterator[None]:
    """Replaces the layers' forward passes until the block ends; results agree to rounding.

    Cases that the kernels do not support (another device or dtype, sharded weights) keep torch's own.
    """
    with ExitStack() as stack:
        stack.enter_context(replaced_linears(model, for_training))
        if kernels.compiled() is not None:
            for layer in model.modules():
                if "forward" not in vars(layer) and (forward := _forward(layer)) is not None:
                    layer.forward = forward
                    stack.callback(delattr, layer, "forward")
        yield


def is_rms_norm(layer: nn.Module) -> bool:
    """Tells whether a layer computes weight · x / rms(x), as in Llama and its many relatives.

    (Gemma's, (1 + weight) · …, has another name for its epsilon.)
    """
    name, own = type(layer).__name__, [name for name, _ in layer.named_parameters()]
    return name.endswith("RMSNorm") and hasattr(layer, "variance_epsilon") and own == ["weight"]


def is_swiglu(layer: nn.Module) -> bool:
    """Tells whether a layer computes down(silu(gate(x)) · up(x))."""
    parts = dict(layer.named_children())
    silu = type(parts.get("act_fn")).__name__ in ("SiLU", "SiLUActivation")
    return type(layer).__name__.endswith("MLP") and set(parts) == GATED and silu


def _forward(layer: nn.Module) -> Callable[..., Any] | None:
    if is_rms_norm(layer):
        return partial(_norm, layer)
    return partial(_gated, layer) if is_swiglu(layer) else None


def _norm(layer: Any, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    norm: Callable[..., Tensor] = _Norm.apply
    own: Callable[..., Tensor] = type(layer).forward
    if kernels.support(x, layer.weight):
        return norm(x, layer.weight, layer.variance_epsilon)
    return own(layer, x)


def _gated(layer: Any, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    gate, up = layer.gate_proj(x), layer.up_proj(x)
    swiglu: Callable[..., Tensor] = _Swiglu.apply
    down: Callable[[Tensor], Tensor] = layer.down_proj
    return down(swiglu(gate, up) if kernels.support(gate, up) else layer.act_fn(gate) * up)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        ctx.save_for_backward(rows, weight)
        ctx.eps = eps
        return kernels.norm(rows, weight, eps).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weight = ctx.saved_tensors
        of_x, of_weight = kernels.norm_backward(grad.reshape(rows.shape).contiguous(), rows, weight, ctx.eps)
        return of_x.view(grad.shape), of_weight.to(weight.dtype), None


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return kernels.swiglu(gate.view(-1, gate.shape[-1]), up.view(-1, up.shape[-1])).view(gate.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.swiglu_backward(grad.contiguous(), *ctx.saved_tensors)
