"""Estimates a run's peak memory from the sizes of its parts. It is arithmetic, not a measurement."""

import math
import os
from dataclasses import dataclass

import torch

from hopd.assembly import Parts
from hopd.model import LanguageModel
from hopd.objective.head import chunk_bytes_on
from hopd.recipe import NativeDecoding, VllmDecoding, VllmServers
from hopd.rollout.native.acceleration import decodes_packed
from hopd.rollout.native.cache import capacity

GIB = 2**30
# Saved for the backward pass, a token and layer: about 14 vectors of the model's width and 4 of the MLP's. A textbook
# count for a decoder with gated MLP and fused attention; attention weights are not kept.
WIDTHS_KEPT, MLP_WIDTHS_KEPT = 14, 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Holds bytes: `static` all the time, rollout and update one after the other."""

    static: float
    rollout: float
    update: float

    @property
    def peak(self) -> float:
        """Returns the most bytes held at once."""
        return self.static + max(self.rollout, self.update)

    def __str__(self) -> str:
        return (
            f"about {self.peak / GIB:.1f} GiB at the largest horizon (weights and optimiser {self.static / GIB:.1f}, "
            f"then rollouts {self.rollout / GIB:.1f} or updates {self.update / GIB:.1f}); an estimate"
        )


def estimate_memory(parts: Parts, horizon: int | None = None, rollouts: int | None = None) -> MemoryEstimate:
    """Estimates at a `horizon` in tokens (default: the largest) and a number of `rollouts` a step (the recipe's)."""
    recipe, student = parts.recipe, parts.student
    element = 2 if recipe.training.precision == "bf16" else 4
    trained = sum(master.numel() for master in parts.learner.optimizer.masters.values())
    frozen = sum(p.numel() for p in student.model.parameters() if not p.requires_grad)
    average = 4 * trained if recipe.training.ema else 0
    if student.sharding.units:  # all of it sharded, and in fp32
        static = (16 * trained + average + 4 * frozen) / parts.processes.size
    else:
        # Master, gradient and two moments in fp32; in bf16 the compute copy besides.
        static = trained * (16 + (2 if element == 2 else 0)) + average + frozen * element
    teachers = {id(teacher): teacher for teacher in parts.teachers.values()}  # some may be one model
    static += sum(p.numel() * element for teacher in teachers.values() for p in teacher.model.parameters())
    ends = [parts.controller.decide(step) for step in (0, parts.total_steps - 1)]
    if horizon is None:
        horizon = max(decision.longest(recipe.rollout.full_tokens) for decision in ends)
    if rollouts is None:
        rollouts = max(sum(decision.parts(recipe.rollout.per_step)) for decision in ends)
    prompts = parts.prompts.prompts
    longest, read = max(len(prompt.ids) for prompt in prompts), max(len(prompt.of_teacher.ids) for prompt in prompts)
    sampled = math.ceil(rollouts * recipe.rollout.sampled_share)
    rollout = rollout_bytes(parts, min(recipe.rollout.rows, sampled), horizon)
    if student.sharding.units:
        rollout += (trained + frozen) * element
    if isinstance(recipe.rollout.engine, NativeDecoding) and recipe.rollout.engine.keys == "kept":
        # Between steps, keys and values of all rollouts that continue; in the mean, half of their tokens are there.
        flying = max(decision.parts(recipe.rollout.per_step)[1] if decision.continues else 0 for decision in ends)
        static += flying * (longest + horizon / 2) * _cache_bytes(student, student.model.dtype.itemsize)
    tokens, scored = (
        min(max(recipe.training.tokens_per_batch, prompt + horizon), rollouts * (prompt + horizon))
        for prompt in (longest, read)
    )
    # Of a chunk, the student's logits and the teacher's as they were projected; a GPU makes float32 losses of all at
    # once, with about six temporaries. Then the gradient of the head, and of the embedding.
    chunk = min(chunk_bytes_on(student.device), 4 * student.head.vocabulary * tokens)
    logits = chunk * (element / 2 + (0 if student.device.type == "cpu" else 6))
    update = tokens * _activation_bytes(student, element) + logits + 2 * element * student.head.weight.numel()
    # A teacher's forward pass keeps one layer's vectors at a time.
    scoring = max((scored * _layer_bytes(teacher, element) for teacher in parts.teachers.values()), default=0.0)
    return MemoryEstimate(static, rollout, max(update, scoring))


def rollout_bytes(parts: Parts, rows: int, tokens: int) -> float:
    """Returns what `rows` concurrent sequences of up to `tokens` tokens take: cache, logits, weights packed for
    decoding."""
    student, element = parts.student, parts.student.model.dtype.itemsize
    if isinstance(parts.recipe.rollout.engine, VllmServers):
        return 0.0
    if isinstance(parts.recipe.rollout.engine, VllmDecoding):
        return parts.recipe.rollout.engine.memory * device_memory(student.device)
    longest = max(len(prompt.ids) for prompt in parts.prompts.prompts)
    # A layer's cache grows by copying, one layer at a time.
    positions = capacity(longest + tokens, student.device) * (1 + 1 / student.config.num_hidden_layers)
    copies = element * student.model.num_parameters() if decodes_packed(student) else 0
    return float(rows * (positions * _cache_bytes(student, element) + 12 * student.head.vocabulary) + copies)


def device_memory(device: torch.device) -> float:
    """Returns the bytes of a device's memory, free or not."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _cache_bytes(model: LanguageModel, element: int) -> float:
    """Returns the bytes of one position's keys and values."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return float(2 * config.num_hidden_layers * heads * model.head_width * element)


def _activation_bytes(model: LanguageModel, element: int) -> float:
    """Returns the bytes that one token keeps for the backward pass."""
    config, layer = model.config, _layer_bytes(model, element)
    if model.recomputes:
        return float(layer + config.num_hidden_layers * config.hidden_size * element)
    return float(layer * config.num_hidden_layers)


def _layer_bytes(model: LanguageModel, element: int) -> float:
    """Returns the bytes of one token's vectors in one layer."""
    mlp = getattr(model.config, "intermediate_size", None) or 4 * model.config.hidden_size
    return float((WIDTHS_KEPT * model.config.hidden_size + MLP_WIDTHS_KEPT * mlp) * element)
