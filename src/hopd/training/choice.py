"""Which attention the learner uses: measured at the start of a run, where it runs, on its shapes."""

import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hopd.attention import MATMUL, SDPA, attention_of, can_choose_attention, matmul_attention
from hopd.model import LanguageModel

MARGIN = 1.25  # by how much products must be faster to be taken: a choice that a busy moment decides helps nobody
WORTH_CHOOSING_SECONDS = 60e-3  # of all layers; below this attention is no term of a step, and noise would choose


def choose_attention(model: LanguageModel, length: int, tokens: int) -> tuple[str, str]:
    """The faster of the two for micro-batches of `tokens` tokens in rows of `length`, and a sentence that says why.

    One call's forward and backward pass, with random numbers: a few hundredths of a second.
    """
    if model.device.type != "cpu" or not can_choose_attention(model):
        return attention_of(model), f"attention: {attention_of(model)}, the only choice here"
    config, dtype = model.config, model.model.dtype
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    rows = max(1, tokens // length)
    q = torch.randn(rows, heads, length, width).to(dtype).requires_grad_()
    k, v = (torch.randn(rows, groups, length, width).to(dtype).requires_grad_() for _ in range(2))
    layer = _Layer(heads // groups)
    calls = {SDPA: sdpa_attention_forward, MATMUL: matmul_attention}
    seconds = {name: _seconds(call, layer, q, k, v) for name, call in calls.items()}
    chosen = SDPA
    if config.num_hidden_layers * seconds[SDPA] > WORTH_CHOOSING_SECONDS and seconds[SDPA] > MARGIN * seconds[MATMUL]:
        chosen = MATMUL
    times = ", ".join(f"{name} {1e3 * taken:.1f} ms" for name, taken in seconds.items())
    what = f"a layer's forward and backward pass of {rows} × {length} tokens in {str(dtype).removeprefix('torch.')}"
    return chosen, f"attention: {chosen} ({what}: {times})"


class _Layer(nn.Module):
    """What attention functions ask of a layer."""

    is_causal = True

    def __init__(self, num_key_value_groups: int):
        super().__init__()
        self.num_key_value_groups = num_key_value_groups


def _seconds(call: Any, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> float:
    """The fastest of three, after one that warms up: the processor's seconds, so that nothing else that it does at the
    moment decides."""
    taken = []
    for _ in range(4):
        started = time.process_time()
        mixed, _ = call(layer, q, k, v, None)
        mixed.sum().backward()
        taken.append(time.process_time() - started)
    return min(taken[1:])
