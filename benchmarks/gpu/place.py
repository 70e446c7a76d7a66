"""Where the measurements are made: the device, its clock and its memory."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

GB = 1e9
Made = TypeVar("Made")


@dataclass(frozen=True)
class Place:
    """`tiny`: shapes of a dry run."""

    device: torch.device
    tiny: bool = False

    @classmethod
    def of(cls, tiny: bool) -> "Place":
        if not tiny and not torch.cuda.is_available():
            raise SystemExit("there is no GPU here; `python -m benchmarks.gpu --tiny` is a dry run on the CPU")
        return cls(torch.device("cpu" if tiny else "cuda:0"), tiny)

    @property
    def card(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "no GPU (dry run)"

    def seconds(self, work: Callable[[], Made], times: int = 1) -> tuple[float, Made]:
        """Seconds of one call, the mean of several, and what the last call gave."""
        self._wait()
        started = time.perf_counter()
        for _ in range(times):
            made = work()
        self._wait()
        return (time.perf_counter() - started) / times, made

    def empty(self) -> None:
        """Gives cached memory back, and begins a new peak."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    @property
    def allocated_gb(self) -> float:
        return torch.cuda.memory_allocated() / GB if self.device.type == "cuda" else 0.0

    @property
    def reserved_gb(self) -> float:
        return torch.cuda.memory_reserved() / GB if self.device.type == "cuda" else 0.0

    @property
    def peak_gb(self) -> float:
        """Since `empty`."""
        return torch.cuda.max_memory_allocated() / GB if self.device.type == "cuda" else 0.0

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
