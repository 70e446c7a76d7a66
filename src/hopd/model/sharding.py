"""Shards the student over the processes (FSDP2): each holds a part of the weights, gradients and AdamW's moments.

A layer is gathered for its own pass. While rollouts decode, all layers stay gathered, because their rollouts end at
different times on different processes, which then need not wait for one another.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


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
