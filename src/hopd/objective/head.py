"""Computes logits from hidden states, and a loss that never holds more than one chunk of them.

It knows nothing of language models: a head is a matrix, with the logit scale and soft-cap that some models have.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hopd.compute.products import linear, times_transposed

# A chunk's float32 logits, student's or teacher's, take at most CHUNK_BYTES: enough positions for fast matrix products.
# On a CPU, losses are computed block by block, so that their temporaries stay in the caches.
CHUNK_BYTES = 128 * 2**20
BLOCK_BYTES = 2**20
# On a GPU every chunk reads and writes the gradient of the whole head, so fewer, larger chunks are faster (0.200 s at
# 128 MiB, 0.137 s at 512 MiB, 0.119 s at 2 GiB: 15,360 positions of 151,936 logits on an H200). Losses and their
# temporaries take about seven chunks: an eightieth of the card per chunk makes that a tenth of the card.
GPU_CHUNK_BYTES, GPU_SHARE = 2**30, 80

Terms = Callable[[Float[Tensor, "n V"], slice], tuple[Float[Tensor, " n"], Float[Tensor, "n S"]]]
"""Maps the student's logits of a block, and its slice of the N positions, to weighted losses and S statistics each."""


@dataclass(frozen=True)
class Head:
    """Projects hidden states to logits: softcap · tanh(scale · (W h + b) / softcap), or scale · (W h + b)."""

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int:
        """Returns V, the number of token ids."""
        return self.weight.shape[0]

    def narrow(self, vocabulary: int) -> "Head":
        """Returns the head of the first `vocabulary` ids. Checkpoints pad their embeddings to different sizes."""
        if vocabulary == self.vocabulary:
            return self
        return replace(
            self, weight=self.weight[:vocabulary], bias=None if self.bias is None else self.bias[:vocabulary]
        )

    def project(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Returns W h + b, in the dtype of `hidden`."""
        return linear(hidden, self.weight, self.bias)

    def scale_and_cap(self, raw: Float[Tensor, "*B V"]) -> Float[Tensor, "*B V"]:
        """Applies scale and soft-cap to projected logits, in float32."""
        logits = raw.float() if self.scale == 1.0 else raw.float() * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def logits(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Returns the logits in float32."""
        return self.scale_and_cap(self.project(hidden))


def chunk_bytes_on(device: torch.device) -> int:
    """Returns the bytes of one chunk's float32 logits that suit the memory of the device."""
    if device.type != "cuda":
        return CHUNK_BYTES
    return min(GPU_CHUNK_BYTES, torch.cuda.get_device_properties(device).total_memory // GPU_SHARE)


def chunks(positions: int, vocabulary: int, chunk_bytes: int = CHUNK_BYTES) -> list[slice]:
    """Returns the slices of the chunks, of equal size except for the last."""
    return _parts(slice(0, positions), positions_in(chunk_bytes, vocabulary))


def positions_in(size: int, vocabulary: int) -> int:
    """Returns the number of positions whose float32 logits fit `size` bytes; at least one."""
    return max(1, size // (4 * vocabulary))


def _blocks(rows: slice, vocabulary: int, device: torch.device) -> list[slice]:
    # A GPU takes the whole chunk: there, time depends on the number of kernels.
    return _parts(rows, positions_in(BLOCK_BYTES, vocabulary)) if device.type == "cpu" else [rows]


def _parts(rows: slice, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]


def chunked_loss(
    head: Head, hidden: Float[Tensor, "N D"], terms: Terms, chunk_bytes: int | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, "N S"]]:
    """Returns the sum of the losses of `terms` over all N positions, and the statistics, [N, S], without gradient.

    The gradient with respect to `hidden` and the head is computed here, chunk by chunk, while the chunk's logits are in
    memory; `backward` only scales it, once (a second call raises `RuntimeError`). Peak memory is one chunk's logits and
    the gradient of the head. `chunk_bytes` limits a chunk's float32 logits (default: `chunk_bytes_on` the device).
    """
    size = chunk_bytes or chunk_bytes_on(hidden.device)
    apply: Callable[..., tuple[Tensor, Tensor]] = _ChunkedLoss.apply
    return apply(hidden, head.weight, head.bias, head, terms, size)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        terms: Terms,
        chunk_bytes: int,
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight: Tensor | None = None
        grad_bias: Tensor | None = None
        total = hidden.new_zeros((), dtype=torch.float32)
        statistics = []
        for rows in chunks(hidden.shape[0], head.vocabulary, chunk_bytes):
            logits = head.project(hidden[rows])
            for block in _blocks(rows, head.vocabulary, hidden.device):
                raw = logits[block.start - rows.start : block.stop - rows.start].detach()
                if not (wants_hidden or wants_weight):
                    losses, stats = terms(head.scale_and_cap(raw), block)
                else:
                    with torch.enable_grad():
                        losses, stats = terms(head.scale_and_cap(raw.requires_grad_()), block)
                        (gradient,) = torch.autograd.grad(losses.sum(), raw)
                    raw.detach().copy_(gradient)  # the gradient overwrites the logits
                total += losses.detach().sum()
                statistics.append(stats.detach())
            if grad_hidden is not None:
                grad_hidden[rows] = times_transposed(logits, weight.T)
            # Chunks are summed in float32 whatever the head's dtype: bf16 would round small late ones away.
            if wants_weight:
                product = times_transposed(logits.T, hidden[rows].T)
                grad_weight = product if grad_weight is None else grad_weight.float().add_(product)
            if wants_bias:
                summed = logits.sum(0, dtype=torch.float32)
                grad_bias = summed if grad_bias is None else grad_bias.add_(summed)
        ctx.gradients = (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        stacked = torch.cat(statistics) if statistics else hidden.new_zeros(0, 0)
        ctx.mark_non_differentiable(stacked)
        return total, stacked

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place, so returned only once
        if gradients is None:
            raise RuntimeError("this loss can be differentiated once; compute it again")
        return *(None if gradient is None else gradient.mul_(grad_total) for gradient in gradients), None, None, None
