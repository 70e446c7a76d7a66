"""A task of your own, and a check of your own. Used by `own_task.yaml`; run `hopd train own_task.yaml` here.

The quickstart's models read digits with the least significant first: `472+185*a:` asks to add 581 to 274 once, and the
answer is what follows the last `#` of the response.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from hopd.tasks import Problem


@dataclass(frozen=True)
class Sums:
    """`size` sums of two numbers below `below`, whose fields are the options of the recipe."""

    size: int
    below: int = 500
    seed: int = 0

    @cached_property
    def problems(self) -> Sequence[Problem]:
        rng = random.Random(self.seed)
        pairs = [(rng.randrange(self.below), rng.randrange(self.below)) for _ in range(self.size)]
        return [Problem(i, f"{_digits(a)}+{_digits(b)}*a:", _digits(a + b)) for i, (a, b) in enumerate(pairs)]

    def score(self, problem: Problem, response: str) -> float:
        return float(_answer(response) == problem.answer)


def digits_right(response: str, answer: str) -> float:
    """Checks a response against the answer of a row: the share of digits that are right."""
    return sum(a == b for a, b in zip(_answer(response), answer, strict=False)) / len(answer)


def _answer(response: str) -> str:
    return response.rpartition("#")[2]


def _digits(value: int) -> str:
    return f"{value:03d}"[::-1]
