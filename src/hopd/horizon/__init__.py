"""Decides how far each rollout goes, and which of its tokens carry loss.

It is pure Python and knows only numbers of steps and tokens: no tensors, no models, no loop. Any trainer can use it
alone:

    controller = horizon.build({"controller": "progressive", "start": 512, "increment": 9}, full_tokens=15360)
    decision = controller.decide(step)        # Decision(tokens=512, reason="...")
"""

from hopd.horizon.build import build, build_window, describe, describe_window
from hopd.horizon.controller import Controller, Decision, Evidence
from hopd.horizon.schedule import Full, Progressive, Staged, Truncated
from hopd.horizon.window import First, Last, Random, Segment, Whole, Window

__all__ = [
    "Controller",
    "Decision",
    "Evidence",
    "First",
    "Full",
    "Last",
    "Progressive",
    "Random",
    "Segment",
    "Staged",
    "Truncated",
    "Whole",
    "Window",
    "build",
    "build_window",
    "describe",
    "describe_window",
]
