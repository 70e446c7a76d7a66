"""Makes the task that a recipe names, and its prompts as a model reads them."""

from typing import Literal

from transformers import PreTrainedTokenizerBase

from hopd.recipe import AdditionSource, FileSource, GymSource, TaskPlugin, TaskSource
from hopd.tasks.addition import RepeatedAddition
from hopd.tasks.files import PromptFile
from hopd.tasks.gym import ReasoningGym
from hopd.tasks.problem import Task
from hopd.tasks.prompts import PromptSet, encode


def build_task(source: TaskSource) -> Task:
    """Makes the task. Raises `TaskError` where that fails, `RecipeError` where one of your own cannot be made."""
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
    """Tokenises the task's prompts. Raises `TaskError`."""
    return encode(build_task(source), tokenizer, chat=source.chat, max_tokens=max_tokens, too_long=too_long)
