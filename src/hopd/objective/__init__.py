"""Turns a teacher's signal into a loss: signals, divergences, estimators, the chunked head, and objectives as data.

It knows tensors, and neither language models nor rollouts nor the loop. Names that need torch are imported on first
use, so that reading an objective from a recipe does not load torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from hopd.objective.detail import Detail
from hopd.objective.objective import Custom, Full, Objective, Sampled, TopK

if TYPE_CHECKING:
    from hopd.objective.credit import discounted_credit as discounted_credit
    from hopd.objective.head import Head as Head
    from hopd.objective.head import chunked_loss as chunked_loss
    from hopd.objective.loss import distillation_loss as distillation_loss
    from hopd.objective.positions import LossTokens as LossTokens
    from hopd.objective.positions import Positions as Positions
    from hopd.objective.positions import TokenStatistics as TokenStatistics
    from hopd.objective.signal import HiddenSignal as HiddenSignal
    from hopd.objective.signal import SampledSignal as SampledSignal
    from hopd.objective.signal import Signal as Signal
    from hopd.objective.signal import TopKSignal as TopKSignal
    from hopd.objective.stop_class import StopClass as StopClass

_HOMES = {
    "Head": "head",
    "HiddenSignal": "signal",
    "LossTokens": "positions",
    "Positions": "positions",
    "SampledSignal": "signal",
    "Signal": "signal",
    "StopClass": "stop_class",
    "TokenStatistics": "positions",
    "TopKSignal": "signal",
    "chunked_loss": "head",
    "discounted_credit": "credit",
    "distillation_loss": "loss",
}

__all__ = ["Custom", "Detail", "Full", "Objective", "Sampled", "TopK", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"hopd.objective.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'hopd.objective' has no attribute {name!r}")
