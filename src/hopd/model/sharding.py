"""Shards the student over the processes (FSDP2): each holds a part of the weights, gradients and AdamW's moments.

A layer is gathered for its own pass. While rollouts decode, all layers stay gathered, because their rollouts end at
different times on different processes, which then need not wait for one another.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from hopd.model.layer_stack import layer_stack
from hopd.processes import Processes

if TYPE_CHECKING:
    from hopd.model.language_model import LanguageModel


class Sharding:
    """Holds the `units` of a model, whose weights are gathered one at a time. The last unit holds all but the layers.

    Without units every process has the whole model, and the methods do nothing.
    """

    def __init__(self, units: Sequence[FSDPModule] = ()):
        self.units, self._is_unsharded = units, False

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Gathers all weights on every process until the block ends: no pass inside waits for another process.

        All processes enter together. Passes inside must have no gradient. Blocks may be nested.
        """
        if self._is_unsharded:
            yield
            return
        for unit in self.units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        self._is_unsharded = True
        try:
            yield
        finally:
            self._is_unsharded = False
            self.reshard()
            for unit in self.units[:-1]:
                unit.set_reshard_after_forward(True, recurse=False)

    def reshard(self) -> None:
        """Frees gathered weights; the next pass gathers the current ones."""
        for unit in self.units:
            unit.reshard()


def shard(model: "LanguageModel", processes: Processes, bf16: bool) -> None:
    """Shards the fp32 weights of `model` over the processes. They stay fp32; with `bf16`, passes use bf16 copies.

    Gradients are summed over the processes, in fp32, not averaged: each process's loss is its part of one mean. Raises
    `ModelError` unless the model has exactly one stack of layers.
    """
    mesh = init_device_mesh(processes.device.type, (processes.size,))
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32)
    units: list[Any] = [*_layers(model), model.model]
    # The vocabulary head is used outside the model's own forward pass; the last unit keeps it gathered until backward.
    whole: Any = model.model  # it gets an attribute that its class does not know
    whole.hopd_backbone = model.backbone.forward
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=precision)
        unit.set_gradient_divide_factor(1.0)
        if hasattr(unit, "set_force_sum_reduction_for_comms"):  # torch before 2.9 divides by the factor above, 1
            unit.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(whole, "hopd_backbone")
    model.forward = whole.hopd_backbone
    model.sharding = Sharding(units)


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Returns whole tensors: sharded ones are gathered one by one into the CPU's memory.

    All processes call it; those that do not `keep` the tensors receive none. Tied tensors stay tied.
    """
    made: dict[int, Tensor] = {}
    for key, tensor in {id(tensor): tensor for tensor in tensors.values()}.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            made[key] = whole.detach() if whole is tensor else whole.detach().cpu()
    return {name: made[id(tensor)] for name, tensor in tensors.items()} if keep else {}


def shard_like(whole: Tensor, part: Tensor) -> Tensor:
    """Returns this process's part of a tensor that all processes hold, sharded as `part` is."""
    if not isinstance(part, DTensor):
        return whole.to(part.device)
    return distribute_tensor(whole.to(part.device), part.device_mesh, part.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """Returns the part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _layers(model: "LanguageModel") -> list[nn.Module]:
    parent, child = layer_stack(model.model, model.name, "shard one stack only: write training.sharding: none")
    return list(getattr(parent, child))
