"""The student cut up over the processes (FSDP2): weights, gradients and moments of AdamW, a part of each on each.

A layer is put together for the time of its pass. While rollouts decode, all of them stay together: processes whose
rollouts end at different times then never wait for one another.
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
    """Holds the `units` of a model whose weights are gathered one at a time; the last holds what belongs to no layer.
    Without units every process has the whole model, and nothing here does anything."""

    def __init__(self, units: Sequence[FSDPModule] = ()):
        self.units, self._is_unsharded = units, False

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Gives every process all weights until the block ends: no pass then waits for another process. All processes
        enter together. There is no gradient inside; blocks may be nested."""
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
        """Frees what was gathered; the next pass sees the weights as they are then."""
        for unit in self.units:
            unit.reshard()


def shard(model: "LanguageModel", processes: Processes, bf16: bool) -> None:
    """Shards `model`, which holds fp32 weights, over the processes; they stay fp32, and under `bf16` passes compute
    with copies.

    Gradients are summed over the processes, in fp32, and not averaged: the loss is a part of one mean already.
    """
    mesh = init_device_mesh(processes.device.type, (processes.size,))
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32)
    units: list[Any] = [*_layers(model), model.model]
    # The vocabulary head is used beside the model's own forward pass, with the last unit, which stays until backward.
    model.model.hopd_backbone = model.backbone.forward
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=precision)
        unit.set_gradient_divide_factor(1.0)
        if hasattr(unit, "set_force_sum_reduction_for_comms"):  # torch before 2.9 divides by the factor above, 1
            unit.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model.model, "hopd_backbone")
    model.forward = model.model.hopd_backbone
    model.sharding = Sharding(units)


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors: what is cut up is put together, one after the other, into the CPU's memory. All processes take
    part; those that do not `keep` them get none. Tied ones stay tied."""
    made: dict[int, Tensor] = {}
    for key, tensor in {id(tensor): tensor for tensor in tensors.values()}.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            made[key] = whole.detach() if whole is tensor else whole.detach().cpu()
    return {name: made[id(tensor)] for name, tensor in tensors.items()} if keep else {}


def cut_like(whole: Tensor, part: Tensor) -> Tensor:
    """This process's part of a tensor that all processes hold, as `part` is cut up."""
    if not isinstance(part, DTensor):
        return whole.to(part.device)
    return distribute_tensor(whole.to(part.device), part.device_mesh, part.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _layers(model: "LanguageModel") -> list[nn.Module]:
    parent, child = layer_stack(model.model, model.name, "shard one stack only: write training.sharding: none")
    return list(getattr(parent, child))
