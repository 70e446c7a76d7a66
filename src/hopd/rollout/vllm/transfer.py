"""Transfers a student's weights to vLLM: as a file, or by the weight transfer of vLLM's public API (NCCL, CUDA IPC).

A file needs no vLLM in this environment; the others need vLLM and GPUs.
"""

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import torch
from safetensors.torch import save_file
from torch import Tensor

from hopd.errors import RecipeError

WEIGHTS = "model.safetensors"


class Versions:
    """Names successive weights; no other run and no resumed one uses the same names."""

    def __init__(self) -> None:
        self._run, self._count = uuid4().hex[:8], 0
        self.current = ""

    def next(self) -> str:
        """Returns the name of the next weights, which become the current ones."""
        self._count += 1
        self.current = f"hopd-{self._run}-{self._count}"
        return self.current


def write_weights(weights: Mapping[str, Tensor], directory: Path) -> None:
    """Writes one safetensors file atomically: a reader finds the old content or the new. Raises `RecipeError`."""
    temporary = directory / f".{WEIGHTS}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(_untied(weights), temporary)
        os.replace(temporary, directory / WEIGHTS)
    except Exception as error:  # safetensors has error types of its own for a failed write
        raise RecipeError(f"the weights for the rollouts could not be written to {directory} ({error})") from error


def _untied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights on the CPU, tied ones with memory of their own, as safetensors requires."""
    untied, seen = {}, set[int]()
    for name, tensor in weights.items():
        here = tensor.detach().cpu().contiguous()
        untied[name] = here.clone() if here.data_ptr() in seen else here
        seen.add(here.data_ptr())
    return untied


class Control(Protocol):
    """Declares the four calls that vLLM's trainer side makes to an engine (its `VLLMWeightSyncClient`)."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...
    def start_weight_update(self) -> None: ...
    def update_weights(self, update_info: Any) -> None: ...
    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class InProcess:
    """Makes the calls of `Control` to a `vllm.LLM`."""

    def __init__(self, llm: Any):
        self.llm = llm

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        self.llm.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        self.llm.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.llm.finish_weight_update(weight_version)


class Source:
    """Provides what vLLM's trainer side reads: names, dtypes and shapes, then the tensors, on this process's GPU."""

    def __init__(self) -> None:
        self.weights: Mapping[str, Tensor] = {}

    def metadata(self) -> list[Any]:
        """Describes the weights in the order in which they are iterated."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.weights.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        return ((name, tensor.detach().to(device)) for name, tensor in self.weights.items())


class Transfer:
    """Sends successive weights by one connection of vLLM's trainer side."""

    def __init__(self, engine: Any, source: Source):
        self.engine, self.source = engine, source

    def send(self, weights: Mapping[str, Tensor]) -> None:
        """Sends weights, and returns once the engine decodes with them."""
        self.source.weights = weights
        try:
            self.engine.send_weights()
        finally:
            self.source.weights = {}


def trainer(backend: Literal["nccl", "ipc"], control: Control, server: str = "", workers: int = 0) -> Transfer:
    """Connects to one engine: a server with `workers` processes (NCCL), or a colocated one (IPC)."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    info: Any
    if backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        info = IPCTrainerInitInfo(rank=0, packed=True)
    else:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        address, port = _rendezvous(server)
        info = NCCLTrainerInitInfo(rank=0, master_address=address, master_port=port, world_size=1 + workers)
    source = Source()
    engine: Any = WeightTransferTrainerFactory.trainer_init(info, client=control, source=source)
    return Transfer(engine, source)


def _rendezvous(server: str) -> tuple[str, int]:
    """Returns a free port and an address of this machine that the server can reach: the one this machine reaches it
    by."""
    parts = urlsplit(server)
    with socket.create_connection((parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))) as to:
        address = str(to.getsockname()[0])
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as free:
        free.bind((address, 0))
        return address, int(free.getsockname()[1])
