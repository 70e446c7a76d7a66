"""Compares a response with the answer of a problem."""

from collections.abc import Callable
from typing import Any

from hopd.errors import TaskError

Check = Callable[[str, Any], float]


def math(response: str, answer: Any) -> float:
    """Returns 1 if math-verify finds the two mathematically equal, else 0. Raises `TaskError` for an empty answer."""
    import math_verify

    if answer is None or not str(answer).strip():
        raise TaskError("there is no answer to compare with")
    gold = math_verify.parse(str(answer) if "$" in str(answer) else f"${answer}$", parsing_timeout=None)
    return float(math_verify.verify(gold, math_verify.parse(response, parsing_timeout=None), timeout_seconds=None))


def exact(response: str, answer: Any) -> float:
    """Returns 1 if the two are the same text, white space around them ignored, and 0 otherwise."""
    return float(response.strip() == str(answer).strip())


CHECKS: dict[str, Check] = {"math": math, "exact": exact}
