"""`python -m benchmarks.attention`: how many times as fast as torch's attention matrix products are, by length.

One layer's forward and backward pass over about 2048 tokens, in fp32 and bf16, with one thread and random numbers: the
figures beside the rule in src/hopd/training/choice.py. `ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16` hides a processor's AMX.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hopd.compute.attention import matmul_attention

TOKENS = 2048
LENGTHS = (32, 64, 128, 192, 256, 384, 512, 768, 1024, 2048)
SHAPES = {
    "4 heads of 32": (4, 4, 32),
    "9 heads of 64": (9, 3, 64),
    "12 heads of 128": (12, 2, 128),
}  # heads, keys, width


class Layer(nn.Module):
    """What attention functions ask of a layer."""

    is_causal = True

    def __init__(self, shared: int):
        super().__init__()
        self.num_key_value_groups = shared


def seconds(attention: Callable[..., Any], layer: Layer, *qkv: Tensor) -> float:
    """The fastest of three, after one that warms up: the processor's seconds, whatever else it does."""
    taken = []
    for _ in range(4):
        started = time.process_time()
        mixed, _ = attention(layer, *qkv, None)
        mixed.sum().backward()
        taken.append(time.process_time() - started)
    return min(taken[1:])


def times_as_fast(dtype: torch.dtype, heads: int, groups: int, width: int, length: int) -> float:
    rows = max(1, TOKENS // length)
    qkv = [torch.randn(rows, n, length, width).to(dtype).requires_grad_() for n in (heads, groups, groups)]
    layer = Layer(heads // groups)
    return seconds(sdpa_attention_forward, layer, *qkv) / seconds(matmul_attention, layer, *qkv)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'tokens a row':26}", *(f"{length:5}" for length in LENGTHS))
    for dtype in (torch.float32, torch.bfloat16):
        for name, shape in SHAPES.items():
            times = [times_as_fast(dtype, *shape, length) for length in LENGTHS]
            print(f"{str(dtype).removeprefix('torch.') + ', ' + name:26}", *(f"{each:5.1f}" for each in times))


if __name__ == "__main__":
    main()
