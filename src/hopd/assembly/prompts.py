"""Makes the task that a recipe names, and its prompts as the models read them."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from hopd.model import LanguageModel
from hopd.model.vocabulary import end_of_answer
from hopd.recipe import AdditionSource, FileSource, GymSource, OwnPrompt, RolloutSection, TaskPlugin, TaskSource
from hopd.tasks.addition import RepeatedAddition
from hopd.tasks.files import PromptFile
from hopd.tasks.findings import check_embedded, findings, read_otherwise
from hopd.tasks.gym import ReasoningGym
from hopd.tasks.problem import Task
from hopd.tasks.prompts import PromptSet, encode
from hopd.tasks.references import Answers, with_references
from hopd.tasks.teacher_task import TeacherTask

Own = Mapping[str | None, OwnPrompt]
"""Holds the teachers that read prompts of their own, by name (None: the only one)."""


def build_task(source: TaskSource, own: Own | None = None, reference: str | None = None) -> Task:
    """Makes the task, with what teachers read of their `own`; of a file, `reference` names the column with reference
    answers. Raises `TaskError` where that fails, `RecipeError` where one of your own cannot be made."""
    match source:
        case AdditionSource():
            return RepeatedAddition(source.steps, source.size, source.seed, source.held_out)
        case GymSource():
            return ReasoningGym(source.name, source.size, source.seed, source.options)
        case FileSource():
            columns = {name: each.prompt for name, each in (own or {}).items() if each.prompt}
            settings = source.model_dump(exclude={"source", "chat", "system", "template"})
            return PromptFile(**settings, teacher_prompts=columns, reference=reference)
        case TaskPlugin():
            task: Task = source.make()
            return task


def build_prompts(
    source: TaskSource,
    student: LanguageModel,
    rollout: RolloutSection,
    teachers: Mapping[str | None, LanguageModel] | None = None,
    own: Own | None = None,
    trained: bool = False,
) -> PromptSet:
    """Tokenises the task's prompts. `teachers`, by name, are those that read them beside the student; the prompts that
    some read in place of them are their `own`. Prompts that are `trained` on have their reference answers, if the
    rollouts need any.

    Raises `TaskError` for what cannot be tokenised, or what one of the models cannot read.
    """
    off_policy, own, tokens = rollout.off_policy if trained else None, own or {}, rollout.prompt_tokens
    task = build_task(source, own, off_policy.column if off_policy else None)
    prompts = encode(task, student.tokenizer, max_tokens=tokens, too_long=rollout.too_long, **_rendering(source))
    check_embedded(prompts, prompts.prompts, student.name, _rows(student))
    notes = list(findings(prompts, student.stop_ids))
    for name, section in own.items():
        if read := prompts.read_by(name):
            problems = [prompts.problems[prompt.id] for prompt in read]
            seen = TeacherTask(task, problems, section.prompt)
            theirs = encode(seen, student.tokenizer, max_tokens=sys.maxsize, **_rendering(source, section))
            prompts = prompts.with_teacher(name, theirs)
            notes += [f"{_named(name)}: {note}" for note in (*theirs.notes, *_findings(prompts, theirs, student))]
    for name, teacher in (teachers or {}).items():
        by_teacher = prompts.teachers.get(name, prompts)
        check_embedded(by_teacher, by_teacher.read_by(name), teacher.name, _rows(teacher))
        notes += read_otherwise(by_teacher, by_teacher.read_by(name), teacher.tokenizer, teacher.name)
    prompts = replace(prompts, notes=(*prompts.notes, *notes))
    return with_references(prompts, _answers(student, rollout, source.chat)) if off_policy else prompts


def _answers(student: LanguageModel, rollout: RolloutSection, chat: bool) -> Answers:
    end = end_of_answer(student, chat)
    return Answers(rollout.full_tokens, student.head.vocabulary, student.stop_ids, end, student.stop)


def _findings(prompts: PromptSet, theirs: PromptSet, student: LanguageModel) -> Iterator[str]:
    """Yields notes on the prompts that a teacher reads of its own, which the student's tokenizer makes."""
    check_embedded(theirs, theirs.prompts, student.name, _rows(student))
    yield from findings(theirs, student.stop_ids)
    shared = {prompt.id: prompt.ids for prompt in prompts.prompts}
    if same := [prompt for prompt in theirs.prompts if torch.equal(prompt.ids, shared[prompt.id])]:
        yield (
            f"{len(same):,} of {len(theirs.prompts):,} prompts are the student's, though it has its own (the first: "
            f"{prompts.where(same[0].id)})"
        )


def _rendering(source: TaskSource, own: OwnPrompt | None = None) -> dict[str, Any]:
    """Returns how prompts are rendered: as the task says, and for a teacher as its section changes that."""
    given: dict[str, Any] = {"chat": source.chat}
    if not isinstance(source, TaskPlugin):
        given |= {"system": source.system, "options": source.template}
    if own is not None and own.system is not None:
        given["system"] = own.system
    return given | ({"options": given.get("options", {}) | own.template, "section": "teacher"} if own else {})


def _named(teacher: str | None) -> str:
    return f"teacher {teacher}" if teacher else "teacher"


def _rows(model: LanguageModel) -> int:
    embedding: Any = model.model.get_input_embeddings()
    return int(embedding.weight.shape[0])
