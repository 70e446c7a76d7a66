"""Chooses the learner's attention under `attention: auto`, by a rule, so that two runs of a recipe have the same bits.

In fp32 torch's fused attention is faster at all lengths. In bf16 its kernel multiplies blocks that are too small for
the processor's bf16 instructions, which whole matrix products do use. Their advantage shrinks with the length, as
scores and weights outgrow the caches.
"""

import torch

from hopd.compute.attention import GROUPED, MATMUL, SDPA
from hopd.compute.products import multiplies_bf16, multiplies_tiles
from hopd.model.language_model import LanguageModel

# The longest sequences for which matrix products are used, in tokens. Their speed relative to torch's, by
# `python -m benchmarks.attention` on a Xeon with AMX, torch 2.13 (without AMX: ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16):
#
#   tokens                              32   64  128  192  256  384  512  768 1024 2048
#   fp32, 4 heads of 32                0.6  0.5  0.4  0.5  0.6  0.5  0.6  0.6  0.5  0.5
#   fp32, 9 heads of 64                0.9  0.6  0.8  0.8  0.6  0.7  0.7  0.8  0.7  0.6
#   bf16 with AMX, 4 heads of 32       3.7  5.7  3.4  1.9  1.7  1.4  1.5  1.0  1.0  0.8
#   bf16 with AMX, 9 heads of 64       8.5  4.5  3.5  2.0  1.8  1.9  1.6  0.8  1.2  1.0
#   bf16 with AMX, 12 heads of 128     5.5  4.0  1.6  1.6  2.0  1.8  1.5  1.3  1.1  1.1
#   bf16 without AMX, 4 heads of 32    4.5  3.3  2.1  1.3  1.2  1.1  1.2  0.8  0.8  0.7
#   bf16 without AMX, 9 heads of 64    5.1  2.5  1.7  1.2  1.1  1.1  1.0  0.8  0.7  0.7
#   bf16 without AMX, 12 heads of 128  2.6  1.7  1.1  1.0  0.9  1.0  1.0  0.7  0.7  0.7
LONGEST_BY_TILES, LONGEST_BY_VECTORS = 512, 128


def attention_of(model: LanguageModel) -> str:
    """Returns the name of the attention in use, as transformers registers it."""
    return str(model.model.config._attn_implementation)


def can_choose_attention(model: LanguageModel) -> bool:
    """Tells whether the model takes its attention from transformers' registry; otherwise it keeps its own."""
    known = (SDPA, MATMUL, *GROUPED.values())
    return attention_of(model) in known and model.model._can_set_attn_implementation()


def choose_attention(model: LanguageModel, length: int, tokens: int) -> tuple[str, str]:
    """Returns the name of the attention, and the reason in a sentence.

    Micro-batches have `tokens` tokens, in sequences of up to `length`.
    """
    if model.device.type != "cpu" or not can_choose_attention(model):
        return attention_of(model), f"attention: {attention_of(model)}, the only choice here"
    longest, multiplies = 0, "fp32"
    if model.model.dtype == torch.bfloat16:
        longest, multiplies = _longest_in_bf16()
    batch = f"sequences of up to {length} tokens, {max(1, tokens // length)} at a time"
    if length <= longest:
        return MATMUL, f"attention: matmul, faster than sdpa for {batch}, in {multiplies}"
    limit = f" (matmul is, up to {longest} tokens)" if longest else ""
    return SDPA, f"attention: sdpa, faster than matmul for {batch}, in {multiplies}{limit}"


def _longest_in_bf16() -> tuple[int, str]:
    if multiplies_tiles():
        return LONGEST_BY_TILES, "bf16 with AMX"
    if multiplies_bf16():
        return LONGEST_BY_VECTORS, "bf16 without AMX"
    return 0, "bf16 on a CPU without bf16 instructions"
