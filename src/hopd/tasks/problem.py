"""A problem is a prompt with what it takes to check an answer. This file knows nothing of tokens or models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Problem:
    """Holds one problem. `id` is its number in its task; with the seed, it keys the random numbers of its rollouts.
    `prompt` is plain text or a list of chat messages. `teacher` names the teacher that scores its rollouts, None where
    there is only one."""

    id: int
    prompt: str | list[dict[str, str]]
    answer: Any = None
    teacher: str | None = None


class Task(Protocol):
    """Provides problems and checks the answers to them."""

    @property
    def problems(self) -> Sequence[Problem]:
        """Returns the problems, the same ones in the same order at every call."""
        ...

    def score(self, problem: Problem, response: str) -> float:
        """Returns how correct a response to the problem is, from 0 to 1."""
        ...
