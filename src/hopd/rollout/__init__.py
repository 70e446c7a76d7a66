"""The student's samples, and the engines that make them."""

from hopd.rollout.batch import Batch, pack
from hopd.rollout.engine import Engine
from hopd.rollout.native import NativeEngine
from hopd.rollout.random import fold, uniform
from hopd.rollout.rollout import FinishReason, Prompt, Rollout
from hopd.sampling import Sampling

__all__ = [
    "Batch",
    "Engine",
    "FinishReason",
    "NativeEngine",
    "Prompt",
    "Rollout",
    "Sampling",
    "fold",
    "pack",
    "uniform",
]
