"""Defines a rollout: the student's response to one prompt, and why it ended. This file knows nothing of engines."""

from dataclasses import dataclass
from enum import StrEnum

from jaxtyping import Float, Int
from torch import Tensor

from hopd.errors import TaskError


class FinishReason(StrEnum):
    """Says why a rollout ended."""

    STOP = "stop"  # the student sampled an end-of-sequence id; it is the last token
    HORIZON = "horizon"  # cut at the number of tokens that the caller allowed
    CONTEXT = "context"  # cut at the model's context length


@dataclass(frozen=True)
class Prompt:
    """Holds a prompt's token ids. `id` keys the random numbers of its rollouts; `teacher` names the teacher that scores
    them, None where there is only one."""

    id: int
    ids: Int[Tensor, " P"]
    teacher: str | None = None

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
    """

    prompt: Prompt
    sample: int
    ids: Int[Tensor, " T"]
    log_probs: Float[Tensor, " T"]
    finish: FinishReason

    @property
    def length(self) -> int:
        """Returns the number of response tokens, a sampled end-of-sequence included."""
        return len(self.ids)

    def __str__(self) -> str:
        return f"rollout of prompt {self.prompt.id}, sample {self.sample}"
