"""Compares mathematics with math-verify. It is imported only in the processes that check answers: nothing here has a
time limit, and some answers take for ever."""

import logging
import re
from typing import Any

import math_verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that it has no time limit, at every start

WORD = re.compile(r"[^\W\d_]{3,}")
COMMAND = re.compile(r"\\[A-Za-z]+")
FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "arcsin", "arccos", "arctan", "inf"}


def equal(response: str, answer: Any) -> float:
    """Returns 1 if math-verify finds the two equal, else 0."""
    given = math_verify.parse(response, parsing_timeout=None)
    return float(math_verify.verify(_parsed(answer), given, timeout_seconds=None))


def readable(answer: Any) -> float:
    """Returns 1 if the answer is mathematics, and 0 if it is words, which math-verify reads as products of letters."""
    found = _parsed(answer)
    equal(r"\boxed{2}", answer)  # some take for ever only when they are compared with a number
    words = set(WORD.findall(COMMAND.sub(" ", str(answer)))) - FUNCTIONS
    is_prose = bool(words) and not any(character.isdigit() for character in str(answer))
    return float(not is_prose and not all(isinstance(each, str) for each in found))


def _parsed(answer: Any) -> list[Any]:
    text = str(answer)
    return list(math_verify.parse(text if "$" in text else f"${text}$", parsing_timeout=None))
