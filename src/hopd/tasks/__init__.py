"""Where prompts come from and how an answer is checked."""

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
