"""Defines a rollout: the student's response to one prompt, and why it ended. This file knows nothing of engines."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopd.errors import TaskError


class FinishReason(StrEnum):
    """Says why a rollout ended."""

    STOP = "stop"  # the student sampled an end-of-sequence id, the last token; or a reference answer is whole
    HORIZON = "horizon"  # cut at the number of tokens that the caller allowed
    CONTEXT = "context"  # cut at the model's context length


@dataclass(frozen=True)
class Prompt:
    """Holds a prompt's token ids. `id` keys the random numbers of its rollouts; `teacher` names the teacher that scores
    them, None where there is only one. `teacher_ids` are what that teacher reads in place of `ids`, if it has a prompt
    of its own. `reference` is an answer that was not sampled, with its end, if it has one."""

    id: int
    ids: Int[Tensor, " P"]
    teacher: str | None = None
    teacher_ids: Int[Tensor, " Q"] | None = None
    reference: Int[Tensor, " S"] | None = None

    @property
    def of_teacher(self) -> "Prompt":
        """Returns the prompt as its teacher reads it."""
        return self if self.teacher_ids is None else replace(self, ids=self.teacher_ids, teacher_ids=None)

    @property
    def longest(self) -> int:
        """Returns the tokens of the longer of both, the student's prompt and its teacher's own."""
        return max(len(self.ids), len(self.of_teacher.ids))

    @property
    def own_tokens(self) -> int:
        """Returns how many tokens the teacher alone reads: those of its own prompt."""
        return 0 if self.teacher_ids is None else len(self.teacher_ids)

    @property
    def of_student(self) -> "Prompt":
        """Returns the prompt as the student reads it, for a teacher that reads the same."""
        return self if self.teacher_ids is None else replace(self, teacher_ids=None)

    def check_room(self, context: int | None) -> None:
        """Raises `TaskError` if the prompt is empty or leaves no room for a response in a model's context."""
        length = len(self.ids)
        if length == 0 or (context is not None and length >= context):
            raise TaskError(
                f"prompt {self.id} has {length} tokens; it needs at least 1 and fewer than the model's context of "
                f"{context}"
            )


@dataclass(frozen=True, eq=False)
class Rollout:
    """Holds one response as the engine sampled it: nothing is decoded, stripped or appended. Tensors are on the CPU.

    `log_probs`, in nats, are those of the policy softmax(logits / temperature), before any top-k or top-p; at
    temperature 0, where that policy is a single token, those of temperature 1.

    A rollout that was cut at the horizon can go on in a later step. `seed` keys its random numbers, with prompt, sample
    and position. `ages` says how many steps ago each token was sampled (None: all in this step), and `cache` holds the
    keys and values of all tokens but the last (layer, 2, head, token, width), if its engine kept them.

    With `is_reference` it is the prompt's reference answer: nobody sampled it, and its `log_probs` are NaN.
    """

    prompt: Prompt
    sample: int
    ids: Int[Tensor, " T"]
    log_probs: Float[Tensor, " T"]
    finish: FinishReason
    seed: int = 0
    ages: Int[Tensor, " T"] | None = None
    cache: Tensor | None = None
    is_reference: bool = False

    @classmethod
    def start(cls, prompt: Prompt, sample: int, seed: int) -> "Rollout":
        """Returns a rollout without tokens."""
        return cls(prompt, sample, torch.empty(0, dtype=torch.long), torch.empty(0), FinishReason.HORIZON, seed)

    @classmethod
    def of_reference(cls, prompt: Prompt, sample: int, limit: int, seed: int) -> "Rollout":
        """Returns the prompt's reference answer, whole or cut after `limit` tokens."""
        assert prompt.reference is not None
        finish = FinishReason.STOP if len(prompt.reference) <= limit else FinishReason.HORIZON
        ids = prompt.reference[:limit]
        return cls(prompt, sample, ids, torch.full(ids.shape, torch.nan), finish, seed, is_reference=True)

    def extended(
        self,
        ids: Int[Tensor, " N"],
        log_probs: Float[Tensor, " N"],
        finish: FinishReason,
        cache: Tensor | None = None,
    ) -> "Rollout":
        """Returns the rollout with more tokens, which were sampled in this step."""
        if self.length == 0:
            return replace(self, ids=ids, log_probs=log_probs, finish=finish, cache=cache)
        return replace(
            self,
            ids=torch.cat([self.ids, ids]),
            log_probs=torch.cat([self.log_probs, log_probs]),
            finish=finish,
            ages=torch.cat([self.age_of_tokens, torch.zeros_like(ids)]),
            cache=cache,
        )

    def aged(self) -> "Rollout":
        """Returns the rollout one step later."""
        return replace(self, ages=self.age_of_tokens + 1)

    @property
    def age_of_tokens(self) -> Int[Tensor, " T"]:
        """Returns how many steps ago each token was sampled."""
        return torch.zeros_like(self.ids) if self.ages is None else self.ages

    @property
    def length(self) -> int:
        """Returns the number of response tokens, a sampled end-of-sequence included."""
        return len(self.ids)

    def __str__(self) -> str:
        return f"{'reference' if self.is_reference else 'rollout'} of prompt {self.prompt.id}, sample {self.sample}"


@dataclass(frozen=True, eq=False)
class Stretch:
    """Asks for more of a rollout: up to `limit` response tokens, those that it has included. With `keep`, its engine
    may keep keys and values if it is then unfinished, because it will go on."""

    rollout: Rollout
    limit: int
    keep: bool = False

    @property
    def read(self) -> Int[Tensor, " N"]:
        """Returns the tokens that an engine without their keys and values reads first: prompt and response so far."""
        return (
            torch.cat([self.rollout.prompt.ids, self.rollout.ids]) if self.rollout.length else self.rollout.prompt.ids
        )

    def cut(self, tokens: int, context: int | None) -> FinishReason:
        """Returns why a rollout that did not stop was cut after `tokens` more. One that was to go on ends where it
        fills the model's context."""
        is_full = len(self.read) + tokens == context
        at_limit = self.rollout.length + tokens == self.limit
        return FinishReason.HORIZON if at_limit and not (is_full and self.keep) else FinishReason.CONTEXT


def starts(prompts: Sequence[Prompt], max_tokens: int, seed: int, samples: int) -> list[Stretch]:
    """Returns what `Engine.sample` asks for: `samples` new rollouts of each prompt, ordered by prompt."""
    return [Stretch(Rollout.start(prompt, sample, seed), max_tokens) for prompt in prompts for sample in range(samples)]
