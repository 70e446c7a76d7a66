"""One query a row by torch's fused kernels and by products with float32 scores: time and rounding of one layer."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.place import Place
from benchmarks.gpu.record import Record
from hopd.compute.attention import fused_grouped_attention

CASES = [(32, 512), (32, 4096), (32, 8192), (64, 4096)]  # rows, capacity
HEADS, GROUPS, WIDTH = 12, 2, 128  # of R1-Distill-Qwen-1.5B


def run(place: Place, record: Record) -> None:
    forms: dict[str, Callable[..., Tensor]] = {
        "fused": fused_grouped_attention,
        "products, float32 scores": by_products,
    }
    for rows, capacity in [(4, 64)] if place.tiny else CASES:
        generator = torch.Generator(place.device).manual_seed(0)
        shapes = [(rows, HEADS, WIDTH), (rows, GROUPS, capacity, WIDTH), (rows, GROUPS, capacity, WIDTH)]
        q, k, v = (torch.randn(shape, generator=generator, device=place.device).bfloat16() for shape in shapes)
        mask = torch.zeros(rows, 1, 1, capacity, device=place.device, dtype=q.dtype)
        mask[:, :, :, : capacity // 8] = float("-inf")
        exact = fused_grouped_attention(q.float(), k.float(), v.float(), mask.float())
        for name, form in forms.items():
            call = partial(form, q, k, v, mask)
            call()
            seconds, mixed = place.seconds(call, 20)
            apart = float((mixed.float() - exact).norm() / exact.norm())
            record.add("attention", form=name, rows=rows, capacity=capacity, ms=1e3 * seconds, relative_error=apart)


def by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Returns what `fused_grouped_attention` does."""
    rows, heads, width = q.shape
    groups, length = k.shape[1:3]
    together = q.view(rows * groups, heads // groups, width)
    keys, values = k.view(rows * groups, length, width), v.view(rows * groups, length, width)
    # A CPU has no product of bf16 matrices in float32.
    scores = torch.bmm(together, keys.mT, out_dtype=torch.float32) if q.is_cuda else together.float() @ keys.mT.float()
    scores = scores.view(rows, groups, heads // groups, length) * width**-0.5 + mask
    weights = scores.softmax(-1).to(q.dtype).view(rows * groups, heads // groups, length)
    mixed: Tensor = weights @ values
    return mixed.view(rows, heads, width)
