"""Matrix products on a CPU by oneDNN, where torch's own way to them is slow.

Torch unpacks and repacks a weight at every product, which the few rows of decoding do not pay for: they get a copy in
oneDNN's own layout. In fp32 torch asks MKL, which leaves the AVX-512 of AMD's processors unused: oneDNN is about twice
as fast there, in training too. Layers are replaced for the time of a rollout or an update only, and never on a GPU.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

SMALL = 2**16  # weights of a matrix: calls of oneDNN take longer to begin than products with fewer take in fp32
Projection = Callable[[Float[Tensor, "*B I"]], Float[Tensor, "*B O"]]


@contextmanager
def replaced_linears(model: nn.Module, make: Callable[[Tensor, Tensor | None], Projection | None]) -> Iterator[None]:
    """Until the block ends, plain linear layers compute with what `make` gives for their weight and bias."""
    with ExitStack() as stack:
        for layer in model.modules():
            if type(layer) is not nn.Linear:
                continue
            if (projection := make(layer.weight, layer.bias)) is not None:
                before = vars(layer).get("forward")
                layer.forward = projection  # type: ignore[assignment]
                stack.callback(_put_back, layer, before)
        yield


def _put_back(layer: nn.Linear, forward: Any) -> None:
    if forward is None:
        del layer.forward
    else:
        layer.forward = forward  # type: ignore[method-assign]


def linear(
    x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "*B O"]:
    """x Wᵀ + b, with its gradients."""
    return _Linear.apply(x, weight, bias) if _by_onednn(weight) else nn.functional.linear(x, weight, bias)


def for_training(weight: Tensor, bias: Tensor | None) -> Projection | None:
    """`linear`, or None where that is torch's own. (In bf16 packed weights gain nothing over whole micro-batches.)"""
    return partial(linear, weight=weight, bias=bias) if _by_onednn(weight) else None


def for_decoding(weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None, rows: int) -> Projection:
    """x Wᵀ + b for so many rows, without gradients."""
    if weight.numel() > SMALL or weight.dtype != torch.float32:
        return packed(weight, bias, rows)
    transposed = weight.detach().T.contiguous()
    return lambda x: x @ transposed if bias is None else x @ transposed + bias


def packed(weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None, rows: int) -> Projection:
    """x Wᵀ + b with a copy of W in the layout that oneDNN likes best for so many rows."""
    layout = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    return lambda x: _onednn(x, layout, bias)


def times_transposed(a: Float[Tensor, "M K"], b: Float[Tensor, "N K"]) -> Float[Tensor, "M N"]:
    """a bᵀ."""
    return _onednn(a, b) if _by_onednn(b) else a @ b.T


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, given = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            times_transposed(rows, weight.T).view(x.shape) if wants_x else None,
            times_transposed(rows.T, given.T) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def packs(dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this CPU, packs weights of `dtype`: tried, since only trying tells."""
    weight, x = torch.ones(16, 16, dtype=dtype), torch.ones(2, 16, dtype=dtype)
    try:
        return bool((packed(weight, None, rows=2)(x) == 16).all())
    except (RuntimeError, AttributeError):
        return False


def multiplies_bf16() -> bool:
    """Whether the CPU has instructions that multiply bf16: AMX or AVX-512's on x86, ARM's own. Without them fp32 is
    faster by far."""
    return any(_capabilities().get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def multiplies_tiles() -> bool:
    """Whether the CPU multiplies whole tiles of bf16 with one instruction (AMX)."""
    return bool(_capabilities().get("amx_bf16", False))


def _capabilities() -> Mapping[str, Any]:
    """The names that torch gives to what the CPU can do; releases before 2.10 tell of x86 only."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    return {"amx_bf16": torch.cpu._is_amx_tile_supported(), "avx512_bf16": torch.cpu._is_avx512_bf16_supported()}


def _by_onednn(weight: Tensor) -> bool:
    """By a rule, not a measurement: a resumed run must compute the same bits."""
    plain = type(weight) in (Tensor, nn.Parameter)  # what is cut up over processes goes torch's way
    return plain and weight.is_cpu and weight.dtype == torch.float32 and weight.numel() > SMALL and _mkl_holds_back()


@cache
def _mkl_holds_back() -> bool:
    """Whether torch's fp32 products are MKL's on a CPU with AVX-512 that is not Intel's."""
    cpus = Path("/proc/cpuinfo")
    amd = cpus.exists() and "AuthenticAMD" in cpus.read_text()
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return amd and avx512 and torch.backends.mkl.is_available() and packs(torch.float32)
