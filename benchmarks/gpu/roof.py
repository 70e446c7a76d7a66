"""What the card can do: products of large bf16 matrices, and copies of its memory."""

import torch

from benchmarks.gpu.place import Place
from benchmarks.gpu.record import Record


def run(place: Place, record: Record) -> None:
    size = 256 if place.tiny else 8192
    a = torch.randn(size, size, device=place.device, dtype=torch.bfloat16)
    a @ a
    product, _ = place.seconds(lambda: a @ a, 10)
    here = torch.zeros(2**20 if place.tiny else 2**31, dtype=torch.uint8, device=place.device)
    there = here.clone()
    copy, _ = place.seconds(lambda: there.copy_(here), 5)
    record.add("roof", bf16_tflops=2 * size**3 / product / 1e12, copy_tb_s=2 * here.numel() / copy / 1e12)
