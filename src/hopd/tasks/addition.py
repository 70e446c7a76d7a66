"""Defines the quickstart task: repeated addition mod 1000 with a digit-by-digit scratchpad.

The prompt `472+185*c:` asks for 581 to be added to 274 three times (digits are written least significant first).
The response has one line of 29 characters for each step, and then the answer:

    a472+185:410507805125180=558;   label, value, addend, (a, b, carry in, sum, carry out) for each digit, new value

One character is one token, so a problem of 12 steps takes 353 tokens with its end-of-sequence. The skill, one
digit-wise addition with carry, is the same at every position of the response: the case where the paper finds that a
short horizon suffices.
"""

import random
import string
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hopd.tasks.problem import Problem

DIGITS = 3
MODULUS = 10**DIGITS
LABELS = string.ascii_lowercase
SYMBOLS = string.digits + LABELS + "+*:=;#"

HELD_OUT = 10  # one (start, addend) pair in ten is kept for evaluation


def prompt(start: int, addend: int, steps: int) -> str:
    """Returns the text that asks for `addend` to be added to `start` `steps` times."""
    return f"{digits(start)}+{digits(addend)}*{LABELS[steps - 1]}:"


def scratchpad(start: int, addend: int, steps: int, rng: random.Random | None = None, drop_carry: float = 0.0) -> str:
    """Returns the worked response. Each carry is dropped with probability `drop_carry`: the mistake that the
    quickstart's student has been trained to make, and unlearns from its teacher."""
    lines, value = [], start
    for label in LABELS[:steps]:
        columns, carry, total = [], 0, 0
        for place in range(DIGITS):
            a, b = value // 10**place % 10, addend // 10**place % 10
            carry_out, digit = divmod(a + b + carry, 10)
            if rng is not None and rng.random() < drop_carry:
                carry_out = 0
            columns.append(f"{a}{b}{carry}{digit}{carry_out}")
            total += digit * 10**place
            carry = carry_out
        lines.append(f"{label}{digits(value)}+{digits(addend)}:{''.join(columns)}={digits(total)};")
        value = total
    return "".join(lines) + f"#{digits(value)}"


def digits(value: int) -> str:
    """Writes a value with a fixed width, least significant digit first."""
    return f"{value:0{DIGITS}d}"[::-1]


@dataclass(frozen=True)
class Worked(Mapping[str, str]):
    """Holds the one column of a problem, its worked `solution` with the question after it, made when it is read."""

    start: int
    addend: int
    steps: int

    def __getitem__(self, name: str) -> str:
        if name != "solution":
            raise KeyError(name)
        asked = self.start, self.addend, self.steps
        return scratchpad(*asked) + prompt(*asked)

    def __iter__(self) -> Iterator[str]:
        yield "solution"

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True)
class RepeatedAddition:
    """Makes `size` problems of `steps` additions each, drawn from `seed`; `held_out` selects the evaluation pairs."""

    steps: int
    size: int
    seed: int = 0
    held_out: bool = False

    @cached_property
    def problems(self) -> Sequence[Problem]:
        """Returns the problems, which `seed` alone decides."""
        pairs = draw_pairs(self.size, self.seed, self.held_out)
        return [
            Problem(
                id=i,
                prompt=prompt(*pair, self.steps),
                answer=digits((pair[0] + self.steps * pair[1]) % MODULUS),
                columns=Worked(*pair, self.steps),
            )
            for i, pair in enumerate(pairs)
        ]

    def score(self, problem: Problem, response: str) -> float:
        """Returns 1 if the text after the last `#` is exactly the answer, and 0 otherwise."""
        return float(response.rpartition("#")[2] == problem.answer and "#" in response)


def is_held_out(start: int, addend: int) -> bool:
    """Tells whether a pair belongs to the tenth that is kept for evaluation. A hash decides, and not a digit, so that
    training sees every digit; no model, the teacher included, is ever trained on an evaluation problem."""
    return zlib.crc32(f"{start}+{addend}".encode()) % HELD_OUT == 0


def draw_pairs(size: int, seed: int, held_out: bool) -> Sequence[tuple[int, int]]:
    """Returns `size` different pairs (start, addend), for evaluation (`held_out`) or for training."""
    rng = random.Random(f"{seed}/{held_out}")
    pairs: dict[tuple[int, int], None] = {}  # a set that keeps its order
    while len(pairs) < size:
        pair = rng.randrange(MODULUS), rng.randrange(MODULUS)
        if is_held_out(*pair) == held_out:
            pairs[pair] = None
    return list(pairs)
