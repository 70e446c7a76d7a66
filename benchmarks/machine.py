"""What the figures were measured on."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

import hopd

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    flags: str
    memory_gib: float
    versions: str
    fp32_gflops: float
    bf16_gflops: float

    @classmethod
    def here(cls) -> "Machine":
        described = Path("/proc/cpuinfo").read_text()
        fields = dict(line.split(":", 1) for line in described.splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in fields.items()}
        have = named.get("flags", "").split()
        return cls(
            cpu=_named(named),
            cores=torch.get_num_threads(),
            flags=" ".join(flag for flag in FLAGS if flag in have),
            memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
            versions=f"hopd {hopd.__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
            fp32_gflops=_gflops(torch.float32),
            bf16_gflops=_gflops(torch.bfloat16),
        )

    @property
    def multiplies_bf16(self) -> bool:
        return self.bf16_gflops > 0.5 * self.fp32_gflops

    @property
    def name(self) -> str:
        """What makes it another machine; its speed at the moment does not."""
        return f"{self.cpu}, {self.cores} threads, {self.flags}, {self.memory_gib:.0f} GiB"

    def sentence(self) -> str:
        return (
            f"{self.versions}; square matrix products at {self.fp32_gflops:.0f} GFLOP/s in fp32, "
            f"{self.bf16_gflops:.3g} in bf16"
        )


def _named(fields: dict[str, str]) -> str:
    """Generations of one name differ in family or model, and by a factor of two in speed."""
    name, family, model = (fields.get(key) for key in ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model})" if family else name or platform.machine()


def _gflops(dtype: torch.dtype) -> float:
    """Of the best of five. Without instructions for it, bf16 is very slow: a small product shows that."""
    small = max(_rate(dtype, 256) for _ in range(5))
    return max(_rate(dtype, 1024) for _ in range(5)) if small > 20 else small


def _rate(dtype: torch.dtype, size: int) -> float:
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    torch.matmul(a, b)
    started = time.perf_counter()
    torch.matmul(a, b)
    return 2.0 * size**3 / (time.perf_counter() - started) / 1e9
