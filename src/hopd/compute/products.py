"""Computes matrix products on a CPU by oneDNN, where torch's default is slow.

Torch repacks a weight at every product, which costs more than the product itself for the few rows of decoding: they use
a copy in oneDNN's own layout. In fp32 torch calls MKL, which does not use AVX-512 on AMD's processors: oneDNN is about
twice as fast there, in training too. Layers are replaced only during a rollout or an update, and never on a GPU.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

SMALL = 2**16  # weights of a matrix: with fewer, a call of oneDNN costs more than the fp32 product itself
Projection = Callable[[Float[Tensor, "*B I"]], Float[Tensor, "*B O"]]


@contextmanager
def replaced_linears(model: nn.Module, make: Callable[[Tensor, Tensor | None], Projection | None]) -> Iterator[None]:
    """Replaces plain linear layers by the projections that `make` returns for weight and bias, until the block ends.

    Where `make` returns None, a layer stays as it is.
    """
    with ExitStack() as stack:
        for layer in model.modules():
            if type(layer) is not nn.Linear:
                continue
            if (projection := make(layer.weight, layer.bias)) is not None:
                before = vars(layer).get("forward")
                layer.forward = projection  # type: ignore[assignment]
                stack.callback(_restore, layer, before)
        yield


def _restore(layer: nn.Linear, forward: Any) -> None:
    if forward is None:
        del layer.forward
    else:
        layer.forward = forward  # type: ignore[method-assign]


def linear(
    x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "*B O"]:
    """Returns x Wᵀ + b, with gradients."""
    multiply: Callable[..., Tensor] = _Linear.apply if _by_onednn(weight) else nn.functional.linear
    return multiply(x, weight, bias)


def for_training(weight: Tensor, bias: Tensor | None) -> Projection | None:
    """Returns `linear` of this layer, or None where torch's own is as fast.

    It is in bf16: packing weights gains nothing over whole micro-batches.
    """
    return partial(linear, weight=weight, bias=bias) if _by_onednn(weight) else None


def for_decoding(weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None, rows: int) -> Projection:
    """Returns a projection x ↦ x Wᵀ + b, without gradients, that is fast for `rows` rows of x."""
    if weight.numel() > SMALL or weight.dtype != torch.float32:
        return packed(weight, bias, rows)
    transposed = weight.detach().T.contiguous()
    return lambda x: x @ transposed if bias is None else x @ transposed + bias


def packed(weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None, rows: int) -> Projection:
    """Returns a projection with a copy of W in the layout that oneDNN prefers for `rows` rows of x."""
    layout = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    return lambda x: _onednn(x, layout, bias)


def times_transposed(a: Float[Tensor, "M K"], b: Float[Tensor, "N K"]) -> Float[Tensor, "M N"]:
    """Returns a bᵀ."""
    return _onednn(a, b) if _by_onednn(b) else a @ b.T


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            times_transposed(rows, weight.T).view(x.shape) if wants_x else None,
            times_transposed(rows.T, inputs.T) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    pointwise: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
    return pointwise(x, weight, bias, "none", [], "")


@cache
def packs(dtype: torch.dtype) -> bool:
    """Tells whether this build of torch packs weights of `dtype` on this CPU, by trying: torch does not say."""
    weight, x = torch.ones(16, 16, dtype=dtype), torch.ones(2, 16, dtype=dtype)
    try:
        return bool((packed(weight, None, rows=2)(x) == 16).all())
    except (RuntimeError, AttributeError):
        return False


def multiplies_bf16() -> bool:
    """Tells whether the CPU has instructions that multiply bf16: AMX or AVX-512 on x86, or ARM's own.

    Without them fp32 is much faster.
    """
    return any(_capabilities().get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def multiplies_tiles() -> bool:
    """Tells whether the CPU multiplies whole tiles of bf16 with one instruction (AMX)."""
    return bool(_capabilities().get("amx_bf16", False))


def _capabilities() -> Mapping[str, Any]:
    """Returns the CPU's capabilities by torch's names; before release 2.10, x86 only."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    return {"amx_bf16": torch.cpu._is_amx_tile_supported(), "avx512_bf16": torch.cpu._is_avx512_bf16_supported()}


def _by_onednn(weight: Tensor) -> bool:
    # A rule, not a measurement: a resumed run must compute the same bits.
    plain = type(weight) in (Tensor, nn.Parameter)  # sharded weights use torch's own
    return plain and weight.is_cpu and weight.dtype == torch.float32 and weight.numel() > SMALL and _mkl_is_slow()


@cache
def _mkl_is_slow() -> bool:
    """Tells whether torch computes fp32 products by MKL on an AMD processor with AVX-512, which MKL does not use."""
    cpus = Path("/proc/cpuinfo")
    amd = cpus.exists() and "AuthenticAMD" in cpus.read_text()
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    has_mkl: Callable[[], bool] = torch.backends.mkl.is_available
    return amd and avx512 and has_mkl() and packs(torch.float32)
