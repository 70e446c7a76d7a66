"""Defines simplifying fractions: another dataset of reasoning-gym, with a teacher trained on worked solutions of ours.

It was chosen by a rule. Its name is the first in the alphabet of those datasets that are not used yet and where

- a question is one sentence of at most 120 characters around whole numbers, the same for all problems,
- the answer is determined, follows from 200 to 500 characters of work on digits, and is checked by the scorer,
- there are more than 10,000 problems at the chosen options,
- the work is not only sums, which three of the other tasks have.
"""

import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from experiments.language.pairs import make_pair, not_evaluated
from experiments.language.setting import Setting
from experiments.quickstart.make import DROPPED_CARRIES, Examples
from hopd.tasks.addition import LABELS

DIGITS = 5  # of numerator and denominator, as the options make them
FACTORS = {2: 2, 3: 1, 5: 1}  # the primes that divide a number up to 6, each with its highest power
OPTIONS = {"min_value": 5000, "max_value": 9999, "min_factor": 2, "max_factor": 6, "styles": ["plain"]}
SYMBOLS = " ./<>GS"  # of its questions and answers, that the packaged models have no token for
BATCH = 8
UPDATES = (1700, 80)
RATES = (1.5e-3, 5e-4)

# The dataset numbers its problems by seed + index: distillation has the first 8192, evaluation those from 10,000 on,
# and teacher and student learn from those after 1,000,000.
SETTING = Setting(
    task={"source": "reasoning_gym", "name": "fraction_simplification", "size": 8192, "options": OPTIONS},
    held_out={"seed": 10_000},
    full_tokens=288,
    prompts=16,
    problems=128,
)


def worked(numerator: int, denominator: int, rng: random.Random, drop_carry: float = 0.0) -> str:
    """Returns the response: the fraction, a line for each division that is tried, the answer in tags.

    A line has a label, a prime, and short division of numerator and denominator by it: for each digit the digit, the
    carry into it and the quotient's digit, then the rest and the quotient; and the fraction that the next line begins
    with. That is the quotients if both rests are 0, and then the prime is tried again, up to its highest power in a
    factor of at most 6. Each carry is forgotten with probability `drop_carry`. The first lines for 28983/43473:

        =28983/43473;
        a2:2018049048193011=14491/4023014177033161=21736:28983/43473;
        b3:2008299168163010=09661/4013144147293010=14491:09661/14491;
    """
    fraction = numerator, denominator
    lines, labels = [f"={_written(*fraction)};"], iter(LABELS)
    for prime, power in FACTORS.items():
        for _ in range(power):
            divided, quotients, rests = [], [], []
            for number in fraction:
                columns, quotient, rest = _divide(number, prime, rng, drop_carry)
                divided.append(f"{columns}{rest}={quotient:0{DIGITS}d}")
                quotients.append(quotient)
                rests.append(rest)
            if not any(rests):
                fraction = quotients[0], quotients[1]
            lines.append(f"{next(labels)}{prime}:{'/'.join(divided)}:{_written(*fraction)};")
            if any(rests):
                break
    return "".join(lines) + f"<answer>{fraction[0]}/{fraction[1]}</answer>"


def _divide(number: int, prime: int, rng: random.Random, drop_carry: float) -> tuple[str, int, int]:
    """Divides digit by digit, and returns the columns, the quotient and the rest."""
    columns, quotient, rest = [], 0, 0
    for digit in map(int, f"{number:0{DIGITS}d}"):
        carry = 0 if rng.random() < drop_carry else rest
        of_quotient, rest = divmod(10 * carry + digit, prime)
        columns.append(f"{digit}{carry}{of_quotient}")
        quotient = 10 * quotient + of_quotient
    return "".join(columns), quotient, rest


def _written(numerator: int, denominator: int) -> str:
    return f"{numerator:0{DIGITS}d}/{denominator:0{DIGITS}d}"


def make(out: Path) -> None:
    """Writes teacher and student."""
    rng = random.Random(0)
    make_pair(out, examples(rng, 0.0), examples(rng, DROPPED_CARRIES), UPDATES, RATES, SYMBOLS)


def examples(rng: random.Random, drop_carry: float) -> Examples:
    """Returns worked solutions for fractions that are not evaluated."""
    others = not_evaluated("fraction_simplification", OPTIONS, SETTING)

    def of_update(update: int) -> Sequence[tuple[str, str]]:
        return [
            (one["question"], worked(one["metadata"]["numerator"], one["metadata"]["denominator"], rng, drop_carry))
            for one in islice(others, BATCH)
        ]

    return of_update
