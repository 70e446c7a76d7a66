"""The matrix products of one training step and nothing else: what no trainer can do without, at torch's own speed.

Each shape is run once for every time that the step needs it (a few times, if that is many, and then multiplied); their
seconds are summed. Rollouts: each weight once a token, for all rows. Teacher and student: over all tokens; backward:
two products for each. Attention is counted as linear layers are, by its two products.
"""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.sides.work import read_prompts
from benchmarks.turns import Turns
from hopd.model import load

REPEATS = 5


def run(case: dict[str, Any], turns: Turns) -> None:
    model = load(str(Path(case["models"]) / "student"))
    dtype = torch.bfloat16 if case["precision"] == "bf16" else torch.float32
    lengths = [len(model.tokenizer(prompt).input_ids) for prompt in read_prompts(case["prompts"])]
    shapes = _step(model, lengths, case["tokens"], case["batch"])
    operands = {shape: _operands(shape, dtype) for shape in shapes}
    for _ in turns:
        seconds = flops = 0.0
        for (batch, m, k, n), count in shapes.items():
            repeats = min(count, REPEATS)
            a, b = operands[batch, m, k, n]
            torch.matmul(a, b)
            started = time.perf_counter()
            for _ in range(repeats):
                torch.matmul(a, b)
            seconds += (time.perf_counter() - started) * count / repeats
            flops += 2.0 * batch * m * k * n * count
        turns.answer(seconds=seconds, tokens=len(lengths) * case["tokens"], prompt_tokens=sum(lengths), flops=flops)


def _operands(shape: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    batch, m, k, n = shape
    lead = (batch,) if batch > 1 else ()
    return torch.randn(*lead, m, k).to(dtype), torch.randn(*lead, n, k).to(dtype).mT  # a weight is stored (out, in)


def _step(model: Any, lengths: list[int], tokens: int, batch: int) -> Counter[tuple[int, int, int, int]]:
    """How often each (batch, m, k, n) is needed."""
    shapes: Counter[tuple[int, int, int, int]] = Counter()
    linears = Counter(tuple(m.weight.shape) for m in model.backbone.modules() if isinstance(m, nn.Linear))
    head, config = model.head.weight.shape, model.config
    rows, width, layers = len(lengths), config.hidden_size // config.num_attention_heads, config.num_hidden_layers
    heads, prompt = config.num_attention_heads, sum(lengths) // len(lengths)
    middle = prompt + tokens // 2
    for (out, inside), count in linears.items():
        shapes[1, sum(lengths), inside, out] += count  # prefill
        shapes[1, rows, inside, out] += count * (tokens - 1)
    shapes[1, rows, head[1], head[0]] += tokens
    groups = config.num_key_value_heads
    shapes[rows * groups, heads // groups, width, middle] += layers * (tokens - 1)
    shapes[rows * groups, heads // groups, middle, width] += layers * (tokens - 1)
    for start in range(0, rows, batch):
        size = min(batch, rows - start)
        length = prompt + tokens - 1
        read, looked_at = size * length, size * tokens
        for (out, inside), count in linears.items():
            shapes[1, read, inside, out] += 2 * count  # teacher, student
            shapes[1, read, out, inside] += count  # gradient of the input
            shapes[1, out, read, inside] += count  # gradient of the weight
        shapes[1, looked_at, head[1], head[0]] += 2
        shapes[1, looked_at, head[0], head[1]] += 1
        shapes[1, head[0], looked_at, head[1]] += 1
        # A causal triangle is half of the square; two products forward, of teacher and student, and four backward.
        shapes[size * heads, length // 2, width, length] += layers * 4
        shapes[size * heads, length // 2, length, width] += layers * 4
    return shapes
