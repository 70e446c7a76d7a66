"""One problem: a prompt and what is needed to check its answer. It knows nothing of tokens or models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Problem:
    """`id` is the problem's number in its task: with the seed, it keys the random numbers of its rollouts.
    `prompt` is plain text, or chat messages; `teacher` names the teacher that scores it (None: the only one)."""

    id: int
    prompt: str | list[dict[str, str]]
    answer: Any = None
    teacher: str | None = None


class Task(Protocol):
    """Where prompts come from and how an answer is checked."""

    @property
    def problems(self) -> Sequence[Problem]: ...

    def score(self, problem: Problem, response: str) -> float:
        """Correctness of a response to the problem, from 0 to 1."""
        ...
