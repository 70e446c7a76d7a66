"""Makes the task that a recipe names, and its prompts as a model reads them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hopd.model import LanguageModel
from hopd.model.vocabulary import end_of_answer
from hopd.recipe import AdditionSource, FileSource, GymSource, RolloutSection, TaskPlugin, TaskSource
from hopd.tasks.addition import RepeatedAddition
from hopd.tasks.files import PromptFile
from hopd.tasks.findings import check_embedded, findings, read_otherwise
from hopd.tasks.gym import ReasoningGym
from hopd.tasks.problem import Task
from hopd.tasks.prompts import PromptSet, encode
from hopd.tasks.references import Answers, with_references


def build_task(source: TaskSource, reference: str | None = None) -> Task:
    """Makes the task; of a file, `reference` names the column with reference answers.

    Raises `TaskError` where that fails, `RecipeError` where one of your own cannot be made.
    """
    match source:
        case AdditionSource():
            return RepeatedAddition(source.steps, source.size, source.seed, source.held_out)
        case GymSource():
            return ReasoningGym(source.name, source.size, source.seed, source.options)
        case FileSource():
            options = source.model_dump(exclude={"source", "chat", "system", "template"})
            return PromptFile(**options, reference=reference)
        case TaskPlugin():
            task: Task = source.make()
            return task


def build_prompts(
    source: TaskSource,
    student: LanguageModel,
    rollout: RolloutSection,
    teachers: Mapping[str | None, LanguageModel] | None = None,
    trained: bool = False,
) -> PromptSet:
    """Tokenises the task's prompts. `teachers`, by name, are those that read them beside the student. Prompts that are
    `trained` on have their reference answers, if the rollouts need any.

    Raises `TaskError` for what cannot be tokenised, or what one of the models cannot read.
    """
    off_policy = rollout.off_policy if trained else None
    given: dict[str, Any] = {"chat": source.chat}
    if not isinstance(source, TaskPlugin):
        given |= {"system": source.system, "options": source.template}
    task = build_task(source, off_policy.column if off_policy else None)
    tokens = rollout.prompt_tokens
    prompts = encode(task, student.tokenizer, max_tokens=tokens, too_long=rollout.too_long, **given)
    check_embedded(prompts, prompts.prompts, student.name, _rows(student))
    notes = list(findings(prompts, student.stop_ids))
    for name, teacher in (teachers or {}).items():
        read = [prompt for prompt in prompts.prompts if name is None or prompt.teacher == name]
        check_embedded(prompts, read, teacher.name, _rows(teacher))
        notes += read_otherwise(prompts, read, teacher.tokenizer, teacher.name)
    prompts = replace(prompts, notes=(*prompts.notes, *notes))
    return with_references(prompts, _answers(student, rollout, source.chat)) if off_policy else prompts


def _answers(student: LanguageModel, rollout: RolloutSection, chat: bool) -> Answers:
    end = end_of_answer(student, chat)
    return Answers(rollout.full_tokens, student.head.vocabulary, student.stop_ids, end, student.stop)


def _rows(model: LanguageModel) -> int:
    embedding: Any = model.model.get_input_embeddings()
    return int(embedding.weight.shape[0])
