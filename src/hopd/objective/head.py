"""The vocabulary head: from hidden states to logits, and a loss that never holds more than one chunk of them.

It knows nothing of language models; a head is a matrix, with the logit scale and soft-cap that some models have.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hopd.compute.products import linear, times_transposed

# The float32 logits of one chunk, student's or teacher's, take at most this much: as many positions as matrix products
# want. Of a CPU's, a block at a time is turned into losses: so much that its temporaries stay in the caches.
CHUNK_BYTES = 128 * 2**20
BLOCK_BYTES = 2**20
# On a GPU every chunk reads and writes the gradient of the whole head, so fewer and larger ones are faster (0.200 s at
# 128 MiB, 0.137 s at 512 MiB, 0.119 s at 2 GiB: 15,360 positions of 151,936 logits on an H200). Losses and their
# temporaries take about seven times a chunk: with an eightieth of the card, a tenth of it.
GPU_CHUNK_BYTES, GPU_SHARE = 2**30, 80

Terms = Callable[[Float[Tensor, "n V"], slice], tuple[Float[Tensor, " n"], Float[Tensor, "n S"]]]
"""From the student's logits of a block and its place: the loss of each position (weighted), and statistics."""


@dataclass(frozen=True)
class Head:
    """logits = softcap · tanh(scale · (W h + b) / softcap), over the first `vocabulary` rows of W."""

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    def narrow(self, vocabulary: int) -> "Head":
        """The head of the first `vocabulary` ids: checkpoints pad their embeddings to different sizes."""
        if vocabulary == self.vocabulary:
            return self
        return replace(
            self, weight=self.weight[:vocabulary], bias=None if self.bias is None else self.bias[:vocabulary]
        )

    def project(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        return linear(hidden, self.weight, self.bias)

    def shape(self, raw: Float[Tensor, "*B V"]) -> Float[Tensor, "*B V"]:
        """Scale and soft-cap, in float32."""
        logits = raw.float() if self.scale == 1.0 else raw.float() * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def logits(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        return self.shape(self.project(hidden))


def chunk_bytes_on(device: torch.device) -> int:
    """Returns the size of one chunk's float32 logits, by the memory of the device."""
    if device.type != "cuda":
        return CHUNK_BYTES
    return min(GPU_CHUNK_BYTES, torch.cuda.get_device_properties(device).total_memory // GPU_SHARE)


def chunks(positions: int, vocabulary: int, chunk_bytes: int = CHUNK_BYTES) -> list[slice]:
    """Places of the chunks, of equal size but for the last."""
    return _parts(slice(0, positions), positions_in(chunk_bytes, vocabulary))


def positions_in(size: int, vocabulary: int) -> int:
    """How many positions have float32 logits of so many bytes; at least one."""
    return max(1, size // (4 * vocabulary))


def _blocks(rows: slice, vocabulary: int, device: torch.device) -> list[slice]:
    """On a GPU the whole chunk: there, what counts is the number of kernels."""
    return _parts(rows, positions_in(BLOCK_BYTES, vocabulary)) if device.type == "cpu" else [rows]


def _parts(rows: slice, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]


def chunked_loss(
    head: Head, hidden: Float[Tensor, "N D"], terms: Terms, chunk_bytes: int | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, "N S"]]:
    """The sum of `terms` over all positions, and their statistics (no gradient).

    The gradient with respect to `hidden` and the head is computed here, chunk by chunk, while the chunk's logits are
    at hand; `backward` only scales it. Peak memory is one chunk's logits and the gradient of the head. `chunk_bytes`:
    of a chunk's float32 logits; by default what suits the device (`chunk_bytes_on`).
    """
    size = chunk_bytes or chunk_bytes_on(hidden.device)
    return _ChunkedLoss.apply(hidden, head.weight, head.bias, head, terms, size)


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
                    losses, stats = terms(head.shape(raw), block)
                else:
                    with torch.enable_grad():
                        losses, stats = terms(head.shape(raw.requires_grad_()), block)
                        (gradient,) = torch.autograd.grad(losses.sum(), raw)
                    raw.detach().copy_(gradient)  # the logits' place is the gradient's from here on
                total += losses.detach().sum()
                statistics.append(stats.detach())
            if grad_hidden is not None:
                grad_hidden[rows] = times_transposed(logits, weight.T)
            # Chunks are summed in float32 whatever the head's dtype: in bf16 a small late one would be rounded away.
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
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place, so handed over once
        if gradients is None:
            raise RuntimeError("backward through this loss works once; compute the loss again")
        return *(None if gradient is None else gradient.mul_(grad_total) for gradient in gradients), None, None, None
