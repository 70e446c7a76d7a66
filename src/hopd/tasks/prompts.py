"""Turns problems into prompts of token ids, and the token ids of rollouts into the text that is scored."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hopd.errors import TaskError
from hopd.model.stop import NO_STOP, Stop
from hopd.rollout.rollout import Prompt, Rollout
from hopd.tasks.chat import ChatTemplate
from hopd.tasks.outcome import Outcome
from hopd.tasks.problem import Problem, Task, lone_surrogate, outcomes, such, where
from hopd.tasks.tokens import tokenize
from hopd.tasks.track import track


@dataclass(frozen=True)
class PromptSet:
    """Holds a task as a model sees it. `dropped` counts the prompts left out because they were too long, `chat` is the
    template that rendered them, and `notes` are sentences for a person. `stop` is the recipe's, whose texts are no part
    of an answer. Equal prompts share one tensor. `teachers` holds, by name (None: the only one), what those teachers
    read that have prompts of their own."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt]
    problems: dict[int, Problem]
    dropped: int = 0
    chat: ChatTemplate | None = None
    notes: tuple[str, ...] = ()
    stop: Stop = NO_STOP
    teachers: Mapping[str | None, "PromptSet"] = field(default_factory=dict)

    def score(self, rollout: Rollout) -> float:
        """Returns how correct a rollout's answer is, from 0 to 1."""
        return self.task.score(self.problems[rollout.prompt.id], self.text(rollout))

    def check(self, rollouts: Sequence[Rollout]) -> list[Outcome]:
        """Checks the answers of many rollouts; one that cannot be checked stops nothing."""
        return outcomes(self.task, [(self.problems[each.prompt.id], self.text(each)) for each in rollouts])

    @property
    def fingerprint(self) -> str:
        """Returns a hash of the prompts and answers, in their order: `hopd compare` requires it to be equal."""
        asked = [(prompt.id, prompt.ids.tolist(), repr(self.problems[prompt.id].answer)) for prompt in self.prompts]
        return sha256(repr(asked).encode()).hexdigest()[:16]

    def read_by(self, name: str | None) -> list[Prompt]:
        """Returns the prompts that one teacher scores; of an only one, without a name, all."""
        return [prompt for prompt in self.prompts if not name or prompt.teacher == name]

    def with_teacher(self, name: str | None, theirs: "PromptSet") -> "PromptSet":
        """Returns the prompts with those that the teacher of that name reads in place of them."""
        ids = {prompt.id: prompt.ids for prompt in theirs.prompts}
        prompts = [replace(each, teacher_ids=ids[each.id]) if each.id in ids else each for each in self.prompts]
        return replace(self, prompts=prompts, teachers={**self.teachers, name: theirs})

    def text(self, rollout: Rollout) -> str:
        """Decodes a rollout without its special tokens and without the id or text of `stop` that ended it."""
        ids = rollout.ids[:-1] if self.stop.ids.intersection(rollout.ids[-1:].tolist()) else rollout.ids
        return self.stop.before(str(self.tokenizer.decode(ids, skip_special_tokens=True)))

    def where(self, number: int) -> str:
        """Names a prompt for a person: in a file by its row."""
        return where(self.task, number)


def encode(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool,
    max_tokens: int,
    too_long: Literal["drop", "error"] = "drop",
    system: str | None = None,
    options: Mapping[str, Any] | None = None,
    section: str = "task",
) -> PromptSet:
    """Tokenises every prompt, with the chat template (`chat`, with `system` and `options`) or as plain text; equal
    prompts once.

    Prompts of more than `max_tokens` tokens are dropped, or with `too_long="error"` refused. Raises `TaskError` for a
    prompt without tokens, one that cannot be encoded, a missing chat template, and if no prompt is left. `section` is
    the recipe's that gives the options.
    """
    template = ChatTemplate(tokenizer, system, options) if chat else None
    problems = task.problems
    texts, numbers = _texts(task, problems, template)
    ids = tokenize(texts, tokenizer, special=not chat)
    lengths = np.array([len(each) for each in ids])[numbers]
    for place in np.flatnonzero(lengths == 0).tolist():
        raise TaskError(f"{where(task, problems[place].id)} is empty: it has no tokens")
    long = np.flatnonzero(lengths > max_tokens)
    if too_long == "error" and len(long):
        raise TaskError(
            f"{where(task, problems[long[0]].id)} has {lengths[long[0]]} tokens, more than the limit of {max_tokens}"
            f"{such(len(long))}; raise rollout.prompt_tokens, or write too_long: drop"
        )
    if len(long) == len(problems):
        raise TaskError(
            f"every one of the {len(long)} prompts is longer than {max_tokens} tokens; raise rollout.prompt_tokens"
        )
    tensors = [torch.from_numpy(each) for each in ids]
    prompts = [
        Prompt(problem.id, tensors[number], problem.teacher)
        for problem, number, length in zip(problems, numbers, lengths, strict=True)
        if length <= max_tokens
    ]
    notes = [*getattr(task, "notes", ()), *(_remarks(task, problems, template, section) if template else ())]
    return PromptSet(task, tokenizer, prompts, {each.id: each for each in problems}, len(long), template, tuple(notes))


def _texts(task: Task, problems: Sequence[Problem], template: ChatTemplate | None) -> tuple[list[str], list[int]]:
    """Returns the texts that the model reads, each once, and the place of each problem's among them."""
    texts: dict[str, int] = {}
    known: dict[str | int, int] = {}
    numbers = []
    for problem in track(problems, "rendering prompts", len(problems)):
        key = problem.prompt if isinstance(problem.prompt, str) else id(problem.prompt)
        if key not in known:
            known[key] = texts.setdefault(_text(task, problem, template), len(texts))
        numbers.append(known[key])
    broken = {number: reason for text, number in texts.items() if (reason := lone_surrogate(text))}
    if at := [problem.id for problem, number in zip(problems, numbers, strict=True) if number in broken]:
        reason = next(iter(broken.values()))
        raise TaskError(f"{where(task, at[0])}: the prompt holds {reason}{such(len(at))}; repair or remove it")
    return list(texts), numbers


def _text(task: Task, problem: Problem, template: ChatTemplate | None) -> str:
    if template is not None:
        try:
            return template.render(problem.prompt)
        except TaskError as error:
            raise TaskError(f"{where(task, problem.id)}: {error}") from error
    if not isinstance(problem.prompt, str):
        raise TaskError(f"{where(task, problem.id)} is a list of chat messages; write chat: true in the recipe's task")
    return problem.prompt


def _remarks(task: Task, problems: Sequence[Problem], template: ChatTemplate, section: str) -> Iterator[str]:
    """Yields what a person may not expect of the messages and of the template's options, given in a recipe's
    `section`."""
    found: dict[str, list[int]] = {}
    for problem in problems:
        for remark in template.remarks(problem.prompt):
            found.setdefault(remark, []).append(problem.id)
    for remark, ids in found.items():
        yield f"{len(ids):,} of {len(problems):,} prompts {remark} (the first: {where(task, ids[0])})"
    for option in template.unread():
        yield f"{section}.template.{option} changes nothing: the chat template never reads {option!r}"
