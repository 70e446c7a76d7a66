"""Compares a response with the answer of a problem."""

import pickle
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Protocol

from hopd.errors import TaskError
from hopd.tasks.outcome import Outcome, attempt
from hopd.tasks.workers import Workers

Check = Callable[[str, Any], float]

MATH_SECONDS, MATH_BYTES = 2.0, 4 << 30
OWN_SECONDS = 10.0  # for each answer, unless `check_seconds` says otherwise

# A number as people and programs write it, and no code or date: no zeros in front, no separators. An exponent is short,
# so that a comparison never writes out more digits than a person could.
NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")


class Checker(Protocol):
    """Checks many responses, and never raises for one of them."""

    def run(self, calls: Sequence[tuple[str, Any]]) -> list[Outcome]: ...

    def close(self) -> None: ...


class InProcess:
    """Runs a check in this process: one that is quick, or that no other process can import."""

    def __init__(self, check: Callable[..., Any]):
        self.check = check

    def run(self, calls: Sequence[tuple[Any, ...]]) -> list[Outcome]:
        """Returns the outcome of each call."""
        return [attempt(self.check, *call) for call in calls]

    def close(self) -> None: ...


_MATH = Workers("hopd.tasks.mathematics:equal", MATH_SECONDS, MATH_BYTES, forks=True)


def math(response: str, answer: Any) -> float:
    """Returns 1 if math-verify finds the two mathematically equal, else 0; also 0 where that takes over two seconds.

    It runs in a process of its own. Raises `TaskError` for an empty answer.
    """
    if answer is None or not str(answer).strip():
        raise TaskError("there is no answer to compare with")
    return _MATH.run([(response, answer)])[0].score


def exact(response: str, answer: Any) -> float:
    """Returns 1 if the two are the same text, white space around them ignored, or the same number, such as 72 and 72.0,
    and 0 otherwise."""
    given, wanted = response.strip(), str(answer).strip()
    if given == wanted:
        return 1.0
    numbers = [Decimal(text) for text in (given, wanted) if NUMBER.fullmatch(text)]
    return float(len(numbers) == 2 and numbers[0] == numbers[1])


CHECKS: dict[str, Check] = {"math": math, "exact": exact}


def checker(check: Check, seconds: float | None = None) -> Checker:
    """Returns what runs a check for many answers: in processes of its own, each answer within `seconds`, unless it is
    `exact`, or a function that another process cannot import, such as a lambda or one of a notebook."""
    if check is math:
        return Workers(_MATH.check, seconds or MATH_SECONDS, MATH_BYTES, forks=True)
    if check is exact or not _can_be_sent(check):
        return InProcess(check)
    return Workers(check, seconds or OWN_SECONDS)


def _can_be_sent(check: Check) -> bool:
    try:
        return b"__main__" not in pickle.dumps(check)
    except Exception:  # pickle raises what the object's own methods raise
        return False
