"""The engine of a recipe."""

import torch

from hopd.model import LanguageModel
from hopd.recipe import Recipe, VllmDecoding, VllmServers
from hopd.rollout.engine import CopyEngine
from hopd.rollout.native import NativeEngine
from hopd.rollout.vllm import VllmEngine
from hopd.rollout.vllm_server import VllmServerEngine

SHORTEST = 128  # tokens that an engine of its own has room for, for probes


def build_engine(recipe: Recipe, student: LanguageModel) -> NativeEngine | CopyEngine:
    rollout = recipe.rollout
    if isinstance(rollout.engine, VllmServers):
        return VllmServerEngine(student, rollout.engine)
    if isinstance(rollout.engine, VllmDecoding):
        tokens = max(rollout.prompt_tokens + rollout.full_tokens, SHORTEST)
        return VllmEngine(
            student,
            rollout.engine,
            rollout.rows,
            tokens if student.context is None else min(tokens, student.context),
            torch.bfloat16 if recipe.training.precision == "bf16" else torch.float32,
            rollout.temperature,
        )
    return NativeEngine(student, rollout.rows)
