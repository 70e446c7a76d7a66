"""Sketches each rollout's gradient by block of positions, in the one backward pass that training makes anyway.

The gradient of a linear layer, for one rollout and block, is Σ_t δ_t x_tᵀ, with x_t the layer's input and δ_t the
gradient of its output. Where no later layer mixes positions, δ_t comes from the loss of one token alone, so that hooks
see every block apart. With random signs R₁ and R₂, the sketch Σ_t (R₁ δ_t) (R₂ x_t)ᵀ has `SIDE`² numbers, whose inner
products are those of the gradients in the mean over signs (Johnson & Lindenstrauss, 1984). The hooks only read.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hopd.compute.products import linear
from hopd.errors import ModelError
from hopd.model import LanguageModel
from hopd.model.layer_stack import layer_stack
from hopd.rollout import Batch, FinishReason, fold
from hopd.training.block_sums import BLOCKS, BlockSums, block_edges

SIDE = 32
NUMBERS = SIDE**2  # of a sketch: all layers add to the same numbers, each with signs of its own


class Sketch:
    """Sketches the gradients of `layers` by tenths of the full length. `seed` draws the signs."""

    def __init__(self, layers: list[nn.Module], full_tokens: int, seed: int = 0):
        self.watched = [_Watched(layer, fold(seed, place)) for place, layer in enumerate(layers)]
        self.edges = block_edges(full_tokens)

    @classmethod
    def of(cls, student: LanguageModel, full_tokens: int, seed: int = 0) -> "Sketch":
        """Chooses the layers of a student that is not sharded yet: see `separate_layers`. Raises `ModelError`."""
        return cls(separate_layers(student), full_tokens, seed)

    def sums(self, device: torch.device) -> BlockSums:
        """Returns the sums over no rollouts, to add to."""
        return BlockSums.zeros(NUMBERS, device)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Reads the layers' inputs and gradients until the block ends, in forward passes with a gradient."""
        with ExitStack() as stack:
            for watched in self.watched:
                stack.callback(watched.layer.register_forward_hook(watched.forward).remove)
                stack.callback(watched.clear)
            yield

    def add(self, batch: Batch, scale: float, sums: BlockSums) -> None:
        """Adds the rollouts of a micro-batch whose backward pass has just ended; `scale` is what its loss was divided
        by."""
        sums.add(scale * self.vectors(batch), self.complete(batch))

    def vectors(self, batch: Batch) -> Float[Tensor, "B K numbers"]:
        """Returns the sketch of the last backward pass by rollout and block."""
        rows, edges = len(batch.rollouts), self.edges.to(batch.ids.device)
        block = torch.bucketize(batch.at.position, edges[1:], right=True)
        blocks, width = int(block.max()) + 1, int(self.edges.diff().max())
        place = (batch.at.row * blocks + block) * width + batch.at.position - edges[block]

        def by_block(name: str) -> Float[Tensor, "BK tokens side"]:
            projected = [watched.projected.pop(name) for watched in self.watched]
            precise = torch.promote_types(projected[0].dtype, torch.float32)
            room = place.new_zeros(rows * blocks * width, len(projected), SIDE, dtype=precise)
            for index, values in enumerate(projected):
                room[place, index] = values[batch.at.row, batch.column].to(precise)
            return room.view(rows * blocks, -1, SIDE)

        products = by_block("delta").mT @ by_block("x")
        vectors = products.new_zeros(rows, BLOCKS, NUMBERS)
        vectors[:, :blocks] = products.view(rows, blocks, NUMBERS) / SIDE  # each of the signs is 1 / √SIDE
        return vectors

    def complete(self, batch: Batch) -> Bool[Tensor, "B K"]:
        """Tells which blocks each rollout has all of: those of one that ended by itself go on, with nothing in them."""
        whole = torch.tensor([rollout.finish is FinishReason.STOP for rollout in batch.rollouts])
        lengths = torch.tensor([rollout.length for rollout in batch.rollouts])
        return (whole[:, None] | (lengths[:, None] >= self.edges[1:])).to(batch.ids.device)


@dataclass(eq=False)
class _Watched:
    """Projects the inputs of one layer, `x`, and the gradients of its outputs, `delta`, in one pass."""

    layer: nn.Module
    seed: int
    signs: dict[str, Float[Tensor, "side D"]] = field(default_factory=dict)
    projected: dict[str, Float[Tensor, "B L side"]] = field(default_factory=dict)

    def forward(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Is a forward hook. Gradient checkpointing calls it again in the backward pass, with the same input."""
        if output.requires_grad:
            self._project("x", inputs[0])
            output.register_hook(self._backward)

    def _backward(self, delta: Float[Tensor, "B L O"]) -> None:
        self._project("delta", delta)

    @torch.no_grad()
    def _project(self, name: str, values: Float[Tensor, "B L D"]) -> None:
        if name not in self.signs:
            generator = torch.Generator().manual_seed(fold(self.seed, int(name == "delta")))
            self.signs[name] = (2 * torch.randint(2, (SIDE, values.shape[-1]), generator=generator) - 1).to(values)
        self.projected[name] = linear(values, self.signs[name])

    def clear(self) -> None:
        self.projected.clear()


def separate_layers(student: LanguageModel) -> list[nn.Module]:
    """Returns the layers with a trained matrix that the last decoder layer calls after its last mixing of positions.

    They are found by trying: a layer mixes, or something behind it does, if the logits of a position have a gradient
    at its output for an earlier one. In Llama o_proj and the MLP's come after the last that does, v_proj. Raises
    `ModelError` if none is left.
    """
    parent, name = layer_stack(student.model, student.name, "sketch the gradients of one stack only")
    last: nn.Module = getattr(parent, name)[-1]
    calls: list[tuple[nn.Module, Float[Tensor, "1 L D"]]] = []

    def perturb(layer: nn.Module, _: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or output.dim() != 3:
            return None  # such as the tokens that an expert of a mixture is given
        calls.append((layer, torch.zeros_like(output, requires_grad=True)))
        return output + calls[-1][1]

    with ExitStack() as stack, torch.enable_grad():
        for layer in filter(_has_matrix, last.modules()):
            stack.callback(layer.register_forward_hook(perturb).remove)
        ids = torch.tensor([[1, 2, 3, 4]], device=student.device) % student.head.vocabulary
        logit = student.head.logits(student.hidden(ids)[:, -1])[0, 0]
    outputs = [output for _, output in calls]
    gradients = torch.autograd.grad(logit, outputs, allow_unused=True) if outputs else ()
    mixing = [place for place, gradient in enumerate(gradients) if gradient is not None and gradient[:, :-1].any()]
    behind = [layer for layer, _ in calls[max(mixing, default=-1) + 1 :]]
    layers = [layer for layer in behind if behind.count(layer) == 1 and layer.weight.requires_grad]
    if not layers:
        raise ModelError(
            f"the last layer of {student.name} has no trained matrix behind which positions no longer mix, so that its "
            "gradients cannot be told apart by position"
        )
    return layers


def _has_matrix(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2
