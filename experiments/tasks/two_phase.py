"""Defines two-phase arithmetic: the first half of a response adds, the second half triples the sum.

A prompt `472+185*f:` asks to add 581 to 274 six times and then to triple the sum six times, all mod 1000 (digits
are written least significant first). A response has the lines of `hopd.tasks.addition`, then lines of 24 characters,
and then the answer:

    g081*3:000080421250=045;   label, value, per digit (a, carry in, digit, carry out), new value

A model that is trained on the first half alone learns addition with carry, and nothing about tripling.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from hopd.errors import TaskError
from hopd.tasks.addition import DIGITS, LABELS, MODULUS, digits, draw_pairs, prompt, scratchpad
from hopd.tasks.problem import Problem

FACTOR = 3
LARGEST = 90_000  # problems: there are about 100,000 held-out pairs


def worked(
    start: int, addend: int, steps: int, rng: random.Random, drop_carry: float = 0.0, double: float = 0.0
) -> str:
    """Returns the response to `prompt`, right to the last character or with the student's broken habits.

    Each carry of an addition is forgotten with probability `drop_carry`, and each digit is doubled instead of tripled
    with probability `double`.
    """
    first = scratchpad(start, addend, steps, rng, drop_carry).partition("#")[0]
    value, lines = int(first[-1 - DIGITS : -1][::-1]), []
    for label in LABELS[steps : 2 * steps]:
        columns, carry, total = [], 0, 0
        for place in range(DIGITS):
            a = value // 10**place % 10
            carry_out, digit = divmod(a * (2 if rng.random() < double else FACTOR) + carry, 10)
            columns.append(f"{a}{carry}{digit}{carry_out}")
            total += digit * 10**place
            carry = carry_out
        lines.append(f"{label}{digits(value)}*{FACTOR}:{''.join(columns)}={digits(total)};")
        value = total
    return first + "".join(lines) + f"#{digits(value)}"


@dataclass(frozen=True)
class TwoPhase:
    """Draws `size` problems of `steps` additions and as many triplings; `held_out` picks the evaluation pairs.

    Raises `TaskError` if `steps` or `size` is out of range.
    """

    steps: int = 6
    size: int = 8192
    seed: int = 0
    held_out: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= len(LABELS) // 2:
            raise TaskError(
                f"two-phase arithmetic takes 1 to {len(LABELS) // 2} steps, as {len(LABELS)} letters label its lines; "
                f"got {self.steps}"
            )
        if not 1 <= self.size <= LARGEST:
            raise TaskError(f"two-phase arithmetic has 1 to {LARGEST} problems, got {self.size}")

    @cached_property
    def problems(self) -> Sequence[Problem]:
        def answer(start: int, addend: int) -> str:
            return digits((start + self.steps * addend) * FACTOR**self.steps % MODULUS)

        pairs = draw_pairs(self.size, self.seed, self.held_out)
        return [Problem(i, prompt(*pair, self.steps), answer(*pair)) for i, pair in enumerate(pairs)]

    def score(self, problem: Problem, response: str) -> float:
        """Returns 1 if what follows the last `#` is exactly the answer, and 0 otherwise."""
        return float(response.rpartition("#")[2] == problem.answer and "#" in response)
