"""Signals, divergences, estimators and the chunked head: pure functions on tensors."""

from hopd.objective.credit import discounted_credit
from hopd.objective.head import Head, chunked_loss
from hopd.objective.objective import LossTokens, Objective, Statistics
from hopd.objective.signal import Detail, HiddenSignal, SampledSignal, Signal

__all__ = [
    "Detail",
    "Head",
    "HiddenSignal",
    "LossTokens",
    "Objective",
    "SampledSignal",
    "Signal",
    "Statistics",
    "chunked_loss",
    "discounted_credit",
]
