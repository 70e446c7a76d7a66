"""Defines rollouts, the student's samples, and the engines that generate them. The room knows no teacher, task, horizon
controller or loop."""

from hopd.recipe.sampling import Sampling
from hopd.rollout.batch import Batch, pack
from hopd.rollout.engine import Engine, answers_of
from hopd.rollout.native.engine import NativeEngine
from hopd.rollout.random import Stream, fold, uniform
from hopd.rollout.rollout import FinishReason, Prompt, Rollout, Stretch

__all__ = [
    "Batch",
    "Engine",
    "FinishReason",
    "NativeEngine",
    "Prompt",
    "Rollout",
    "Sampling",
    "Stream",
    "Stretch",
    "answers_of",
    "fold",
    "pack",
    "uniform",
]
