"""Signals, divergences, estimators and the chunked head: pure functions on tensors."""

from hopd.objective.credit import discounted_credit
from hopd.objective.head import Head, chunked_loss
from hopd.objective.objective import LossTokens, Objective, Statistics
from hopd.objective.signal import Detail, HiddenSignal, SampledSignal, Signal, TopKSignal

__all__ = [
    "Detail",
    "Head",
    "HiddenSignal",
    "LossTokens",
    "Objective",
    "SampledSignal",
    "Signal",
    "Statistics",
    "TopKSignal",
    "chunked_loss",
    "discounted_credit",
]
