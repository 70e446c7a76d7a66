"""Turns problems into prompts of token ids, and the token ids of rollouts into the text that is scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hopd.errors import TaskError
from hopd.model.stop import NO_STOP, Stop
from hopd.rollout.rollout import Prompt, Rollout
from hopd.tasks.problem import Problem, Task


@dataclass(frozen=True)
class PromptSet:
    """Holds a task as a model sees it. `dropped` counts the prompts left out because they were too long. `stop` is the
    recipe's, whose texts are no part of an answer."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt]
    problems: dict[int, Problem]
    dropped: int = 0
    stop: Stop = NO_STOP

    def score(self, rollout: Rollout) -> float:
        """Returns how correct a rollout's answer is, from 0 to 1."""
        return self.task.score(self.problems[rollout.prompt.id], self.text(rollout))

    @property
    def fingerprint(self) -> str:
        """Returns a hash of the prompts and answers, in their order: `hopd compare` requires it to be equal."""
        asked = [(prompt.id, prompt.ids.tolist(), repr(self.problems[prompt.id].answer)) for prompt in self.prompts]
        return sha256(repr(asked).encode()).hexdigest()[:16]

    def text(self, rollout: Rollout) -> str:
        """Decodes a rollout without its special tokens and without the id or text of `stop` that ended it."""
        ids = rollout.ids[:-1] if self.stop.ids.intersection(rollout.ids[-1:].tolist()) else rollout.ids
        return self.stop.before(str(self.tokenizer.decode(ids, skip_special_tokens=True)))


def encode(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool,
    max_tokens: int,
    too_long: Literal["drop", "error"] = "drop",
) -> PromptSet:
    """Tokenizes every prompt, with the chat template (`chat`) or as plain text.

    Prompts of more than `max_tokens` tokens are dropped, or with `too_long="error"` refused. Raises `TaskError` for a
    prompt without tokens, for a missing chat template, and if no prompt is left.
    """
    if chat and not tokenizer.chat_template:
        raise TaskError("the tokenizer has no chat template; write chat: false in the recipe's task")
    prompts, dropped = [], 0
    for problem in task.problems:
        ids = _ids(problem, tokenizer, chat)
        if not ids:
            raise TaskError(f"prompt {problem.id} is empty")
        if len(ids) > max_tokens:
            if too_long == "error":
                raise TaskError(
                    f"prompt {problem.id} has {len(ids)} tokens, more than the limit of {max_tokens}; raise "
                    "rollout.prompt_tokens, or write too_long: drop"
                )
            dropped += 1
            continue
        prompts.append(Prompt(problem.id, torch.tensor(ids), problem.teacher))
    if not prompts:
        raise TaskError(
            f"every one of the {dropped} prompts is longer than {max_tokens} tokens; raise rollout.prompt_tokens"
        )
    return PromptSet(task, tokenizer, prompts, {problem.id: problem for problem in task.problems}, dropped)


def _ids(problem: Problem, tokenizer: PreTrainedTokenizerBase, chat: bool) -> list[int]:
    if not chat:
        if not isinstance(problem.prompt, str):
            raise TaskError(f"prompt {problem.id} is a list of chat messages; write chat: true in the recipe's task")
        return list(tokenizer(problem.prompt).input_ids)
    messages = [{"role": "user", "content": problem.prompt}] if isinstance(problem.prompt, str) else problem.prompt
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, AttributeError, KeyError, TypeError) as error:
        raise TaskError(f"prompt {problem.id}: the chat template refuses its messages: {error}") from error
    return list(tokenizer(str(text), add_special_tokens=False).input_ids)
