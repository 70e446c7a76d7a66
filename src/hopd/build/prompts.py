"""The task that a recipe names, as a model sees it."""

from typing import Literal

from transformers import PreTrainedTokenizerBase

from hopd.recipe import AdditionSource, FileSource, GymSource, TaskPlugin, TaskSource
from hopd.tasks.addition import RepeatedAddition
from hopd.tasks.files import PromptFile
from hopd.tasks.gym import ReasoningGym
from hopd.tasks.problem import Task
from hopd.tasks.prompts import PromptSet, encode


def build_task(source: TaskSource) -> Task:
    """Raises `TaskError` where the recipe's task cannot be made, `RecipeError` where one of your own cannot."""
    match source:
        case AdditionSource():
            return RepeatedAddition(source.steps, source.size, source.seed, source.held_out)
        case GymSource():
            return ReasoningGym(source.name, source.size, source.seed, source.options)
        case FileSource():
            return PromptFile(**source.model_dump(exclude={"source", "chat"}))
        case TaskPlugin():
            task: Task = source.make()
            return task


def build_prompts(
    source: TaskSource,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    too_long: Literal["drop", "error"] = "drop",
) -> PromptSet:
    return encode(build_task(source), tokenizer, chat=source.chat, max_tokens=max_tokens, too_long=too_long)
