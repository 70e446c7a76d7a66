"""Makes the rollout engine of a recipe."""

import torch

from hopd.model import LanguageModel
from hopd.processes import Processes
from hopd.recipe import Recipe, VllmDecoding, VllmServers
from hopd.rollout.engine import Engine
from hopd.rollout.native.engine import NativeEngine
from hopd.rollout.vllm.colocated import ColocatedVllm
from hopd.rollout.vllm.server import RemoteVllm
from hopd.rollout.weight_sync import WeightSync

SHORTEST = 128  # tokens that a colocated vLLM has room for at least: the fingerprint must fit


def build_engine(recipe: Recipe, student: LanguageModel, processes: Processes) -> Engine:
    """Returns the engine that samples from `student`: one with a copy of the weights gets them before it samples."""
    rollout = recipe.rollout
    dtype = torch.bfloat16 if recipe.training.precision == "bf16" else torch.float32
    if isinstance(rollout.engine, VllmServers):
        return WeightSync(RemoteVllm(student, rollout.engine), student, processes, dtype)
    if isinstance(rollout.engine, VllmDecoding):
        tokens = max(rollout.prompt_tokens + rollout.full_tokens, SHORTEST)
        tokens = tokens if student.context is None else min(tokens, student.context)
        vllm = ColocatedVllm(student, rollout.engine, rollout.rows, tokens, dtype, rollout.temperature)
        return WeightSync(vllm, student, processes, dtype)
    return NativeEngine(student, rollout.rows, keeps=rollout.engine.keys == "kept")
