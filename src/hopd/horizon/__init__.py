"""Decides what each step spends: how many rollouts, how far each goes, whether they continue; and which of their
tokens carry loss.

It is pure Python and knows only numbers of steps and tokens: no tensors, no models, no loop. Any trainer can use it
alone:

    controller = horizon.build({"controller": "progressive", "start": 512, "increment": 9}, full_tokens=15360)
    decision = controller.decide(step)        # Decision(tokens=512, reason="...")
"""

from hopd.horizon.adaptive import Adaptive
from hopd.horizon.build import BuiltIn, build, build_window, describe, describe_window
from hopd.horizon.controller import Block, Controller, Decision, Evidence, Gradients
from hopd.horizon.neighbours import Plateau, Prune, Settled
from hopd.horizon.schedule import Full, Progressive, RandomHorizon, Staged, Truncated
from hopd.horizon.window import First, Last, Random, Segment, Whole, Window

__all__ = [
    "Adaptive",
    "Block",
    "BuiltIn",
    "Controller",
    "Decision",
    "Evidence",
    "First",
    "Full",
    "Gradients",
    "Last",
    "Plateau",
    "Progressive",
    "Prune",
    "Random",
    "RandomHorizon",
    "Segment",
    "Settled",
    "Staged",
    "Truncated",
    "Whole",
    "Window",
    "build",
    "build_window",
    "describe",
    "describe_window",
]
