"""Knows the processes of a run: which one this is, and what all of them add up, agree on and wait for.

Every method is called by all processes together. It knows nothing of models or recipes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from hopd.errors import HopdError

# A process may wait for another's whole evaluation, or for a server until its deadline: NCCL's default of ten minutes
# would end runs that are well.
LONGEST_WAIT = timedelta(hours=6)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """Names this process: `rank` counts from 0 to `size` − 1, `device` is where this process trains. Without arguments:
    one process on a CPU."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def start(cls) -> "Processes":
        """Joins the processes that torchrun, accelerate or Ray launched; without a launcher there is one."""
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
        return cls(state.process_index, state.num_processes, state.device)

    @property
    def is_first(self) -> bool:
        """Tells whether this is the process that writes and decides."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Adds up a tensor, which may be on any device, over the processes."""
        if self.size == 1:
            return tensor
        summed = tensor.to(self.device, copy=True)
        torch.distributed.all_reduce(summed)
        return summed

    def total(self, value: float) -> float:
        """Returns the sum of all processes' values."""
        return float(self.sum(torch.tensor(value, dtype=torch.float64))) if self.size > 1 else value

    def highest(self, value: float) -> float:
        """Returns the largest of all processes' values."""
        values = torch.zeros(self.size, dtype=torch.float64)
        values[self.rank] = value
        return float(self.sum(values).max())

    def broadcast(self, value: Value) -> Value:
        """Returns the first process's value on all of them."""
        return broadcast_object_list([value])[0] if self.size > 1 else value

    def gather(self, values: list[Value]) -> list[Value]:
        """Joins the lists of all processes, in the order of their ranks."""
        return list(gather_object(values)) if self.size > 1 else values

    def agree(self, error: HopdError | None) -> None:
        """Raises the error of any process on all of them: its own on the one that has it, on the others the first."""
        if not self.total(float(error is not None)):
            return
        errors = self.gather([error])
        if error is not None:
            raise error
        rank, first = next((rank, other) for rank, other in enumerate(errors) if other is not None)
        raise type(first)(f"process {rank}: {first}")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raises at the end of the block, on all processes, what one of them raised inside. Nothing inside may need the
        other processes."""
        failure: HopdError | None = None
        try:
            yield
        except HopdError as error:
            failure = error
        self.agree(failure)

    def wait(self) -> None:
        """Returns once all processes have come here."""
        if self.size > 1:
            torch.distributed.barrier()

    def stop(self) -> None:
        """Ends the connection between the processes. Nothing here can be called afterwards."""
        if self.size > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
