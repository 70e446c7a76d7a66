"""A problem is a prompt with what it takes to check an answer. This file knows nothing of tokens or models."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from hopd.errors import TaskError
from hopd.tasks.outcome import Outcome, attempt

Message = dict[str, Any]
"""A chat message, with its `role` and `content`."""


@dataclass(frozen=True)
class Problem:
    """Holds one problem. `id` is its number in its task; with the seed, it keys the random numbers of its rollouts.
    `prompt` is plain text or a list of chat messages. `teacher` names the teacher that scores its rollouts, None where
    there is only one. `reference` is an answer to learn from, a text or an assistant's message, if there is one.
    `columns` holds more of the problem by name, such as a prompt that only a teacher reads."""

    id: int
    prompt: str | list[Message]
    answer: Any = None
    teacher: str | None = None
    reference: Any = None
    columns: Mapping[str, Any] | None = None


class Task(Protocol):
    """Provides problems and checks the answers to them."""

    @property
    def problems(self) -> Sequence[Problem]:
        """Returns the problems, the same ones in the same order at every call."""
        ...

    def score(self, problem: Problem, response: str) -> float:
        """Returns how correct a response to the problem is, from 0 to 1."""
        ...


@runtime_checkable
class ManyAnswers(Protocol):
    """Is a task that checks many answers at once, none of which can stop or hold up the others."""

    def outcomes(self, answered: Sequence[tuple[Problem, str]]) -> list[Outcome]:
        """Returns what checking each response gave. Raises `TaskError` if the task cannot check answers at all."""
        ...

    def remarks(self) -> Iterator[str]:
        """Yields a sentence for each thing about its answers that a person should know before a run."""
        ...

    def close(self) -> None:
        """Ends the processes that check; later calls start new ones."""
        ...


@runtime_checkable
class Rows(Protocol):
    """Is a task that names its problems for a person, as a file does by its rows."""

    def where(self, number: int) -> str:
        """Names the problem of that number."""
        ...


def where(task: Task, number: int) -> str:
    """Names a problem for a person."""
    return task.where(number) if isinstance(task, Rows) else f"prompt {number}"


def outcomes(task: Task, answered: Sequence[tuple[Problem, str]]) -> list[Outcome]:
    """Checks many answers: at once where the task can, one after another in this process where it has only `score`."""
    if isinstance(task, ManyAnswers):
        return task.outcomes(answered)
    return [attempt(task.score, problem, response) for problem, response in answered]


def lone_surrogate(text: str) -> str | None:
    """Describes the first character that was cut in half, which no tokenizer can read, or returns None."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        before = text[max(0, error.start - 12) : error.start]
        return f"half of a character, the lone surrogate {text[error.start]!a}, after {before!r}"
    return None


def reference_text(reference: Any) -> str:
    """Returns the text of a reference answer: a text, or the content of an assistant's message, alone or in a list.

    Raises `TaskError` for anything else, for no text, and for half of a character.
    """
    alone = reference[0] if isinstance(reference, list) and len(reference) == 1 else reference
    is_message = isinstance(alone, dict) and alone.get("role") == "assistant"
    text = alone.get("content") if is_message else alone
    if text is None or text == [] or (isinstance(text, str) and not text.strip()):
        raise TaskError("the reference answer is empty; leave such rows out with task.filter, or write an answer")
    if not isinstance(text, str):
        kind = "other messages" if isinstance(alone, dict | list) else type(text).__name__
        raise TaskError(f"a reference answer is a text or one message of the assistant with a text, got {kind}")
    if broken := lone_surrogate(text):
        raise TaskError(f"the reference answer holds {broken}; repair or remove it")
    return text


def such(count: int) -> str:
    """Returns how many rows have the fault that a sentence shows one row of, or nothing for one alone."""
    return f" ({count:,} such rows)" if count > 1 else ""


def refuse(faults: Mapping[str, Sequence[int]], where: Callable[[int], str]) -> None:
    """Raises `TaskError` if there are faults: for the first, with its first problem, which `where` names, and a count.
    `faults` maps a sentence to the numbers of problems."""
    for fault, numbers in faults.items():
        raise TaskError(f"{where(numbers[0])}: {fault}{such(len(numbers))}")
