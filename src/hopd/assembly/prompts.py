"""Makes the task that a recipe names, and its prompts as a model reads them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hopd.model import LanguageModel
from hopd.recipe import AdditionSource, FileSource, GymSource, RolloutSection, TaskPlugin, TaskSource
from hopd.tasks.addition import RepeatedAddition
from hopd.tasks.files import PromptFile
from hopd.tasks.findings import check_embedded, findings, read_otherwise
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
            return PromptFile(**source.model_dump(exclude={"source", "chat", "system", "template"}))
        case TaskPlugin():
            task: Task = source.make()
            return task


def build_prompts(
    source: TaskSource,
    student: LanguageModel,
    rollout: RolloutSection,
    teachers: Mapping[str | None, LanguageModel] | None = None,
) -> PromptSet:
    """Tokenises the task's prompts. `teachers`, by name, are those that read them beside the student.

    Raises `TaskError` for what cannot be tokenised, or what one of the models cannot read.
    """
    given: dict[str, Any] = {"chat": source.chat}
    if not isinstance(source, TaskPlugin):
        given |= {"system": source.system, "options": source.template}
    task, tokens = build_task(source), rollout.prompt_tokens
    prompts = encode(task, student.tokenizer, max_tokens=tokens, too_long=rollout.too_long, **given)
    check_embedded(prompts, prompts.prompts, student.name, _rows(student))
    notes = list(findings(prompts, student.stop_ids))
    for name, teacher in (teachers or {}).items():
        read = [prompt for prompt in prompts.prompts if name is None or prompt.teacher == name]
        check_embedded(prompts, read, teacher.name, _rows(teacher))
        notes += read_otherwise(prompts, read, teacher.tokenizer, teacher.name)
    return replace(prompts, notes=(*prompts.notes, *notes))


def _rows(model: LanguageModel) -> int:
    embedding: Any = model.model.get_input_embeddings()
    return int(embedding.weight.shape[0])
