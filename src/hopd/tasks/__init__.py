"""Defines tasks: where prompts come from and how answers are checked. The room knows tokenizers and rollouts, but no
model, recipe or engine."""

from hopd.tasks.addition import RepeatedAddition
from hopd.tasks.files import PromptFile
from hopd.tasks.gym import ReasoningGym
from hopd.tasks.problem import Problem, Task
from hopd.tasks.prompts import PromptSet, encode

__all__ = [
    "Problem",
    "PromptFile",
    "PromptSet",
    "ReasoningGym",
    "RepeatedAddition",
    "Task",
    "encode",
]
