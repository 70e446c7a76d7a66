"""Signals, divergences, estimators and the chunked head: pure functions on tensors, and the objectives as plain data.

Names are imported when they are used: whoever reads an objective from a recipe does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from hopd.objective.objective import Detail, Full, Objective, Own, Sampled, TopK

if TYPE_CHECKING:
    from hopd.objective.credit import discounted_credit as discounted_credit
    from hopd.objective.head import Head as Head
    from hopd.objective.head import chunked_loss as chunked_loss
    from hopd.objective.loss import distillation_loss as distillation_loss
    from hopd.objective.positions import LossTokens as LossTokens
    from hopd.objective.positions import Positions as Positions
    from hopd.objective.positions import Statistics as Statistics
    from hopd.objective.signal import HiddenSignal as HiddenSignal
    from hopd.objective.signal import SampledSignal as SampledSignal
    from hopd.objective.signal import Signal as Signal
    from hopd.objective.signal import TopKSignal as TopKSignal

_HOMES = {
    "Head": "head",
    "HiddenSignal": "signal",
    "LossTokens": "positions",
    "Positions": "positions",
    "SampledSignal": "signal",
    "Signal": "signal",
    "Statistics": "positions",
    "TopKSignal": "signal",
    "chunked_loss": "head",
    "discounted_credit": "credit",
    "distillation_loss": "loss",
}

__all__ = ["Detail", "Full", "Objective", "Own", "Sampled", "TopK", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"hopd.objective.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'hopd.objective' has no attribute {name!r}")
