"""Defines tasks: where prompts come from and how answers are checked. The room knows tokenizers and rollouts, but no
model, recipe or engine.

Names are imported when they are used: the processes that check answers load no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hopd.tasks.addition import RepeatedAddition as RepeatedAddition
    from hopd.tasks.files import PromptFile as PromptFile
    from hopd.tasks.gym import ReasoningGym as ReasoningGym
    from hopd.tasks.outcome import Outcome as Outcome
    from hopd.tasks.problem import Problem as Problem
    from hopd.tasks.problem import Task as Task
    from hopd.tasks.prompts import PromptSet as PromptSet
    from hopd.tasks.prompts import encode as encode

_HOMES = {
    "Outcome": "outcome",
    "Problem": "problem",
    "PromptFile": "files",
    "PromptSet": "prompts",
    "ReasoningGym": "gym",
    "RepeatedAddition": "addition",
    "Task": "problem",
    "encode": "prompts",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"hopd.tasks.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'hopd.tasks' has no attribute {name!r}")
