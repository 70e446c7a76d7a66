"""Chain sums: a dataset of reasoning-gym, which nobody here designed, and a teacher trained on its worked solutions."""

import random
from collections.abc import Sequence
from pathlib import Path

from hopd.quickstart.make import DROPPED_CARRIES, Examples
from hopd.reproduce.horizons import HorizonComparison
from hopd.reproduce.language import OPD, Setting, topd
from hopd.reproduce.pairs import make_pair
from hopd.tasks import ReasoningGym
from hopd.tasks.addition import DIGITS, LABELS, MODULUS, digits

TERMS = 5  # of two digits: all sums lie between −MODULUS / 2 and MODULUS / 2
OPTIONS = {"min_terms": TERMS, "max_terms": TERMS, "min_digits": 2, "max_digits": 2}
SYMBOLS = "S -<>/"  # of its questions and answers, that the packaged models have no token for
BATCH = 16
UPDATES = (500, 60)
RATES = (1e-3, 5e-4)

# Problems of the dataset are numbered by seed + index: distillation has the first 8192, evaluation the 256 from 10,000
# on, teacher and student learnt from those after 1,000,000.
SETTING = Setting(
    task={"source": "reasoning_gym", "name": "chain_sum", "size": 8192, "options": OPTIONS},
    held_out={"seed": 10_000},
    full_tokens=170,
)


def worked(expression: str, rng: random.Random, drop_carry: float = 0.0) -> str:
    """The response to `15 - 43 + 61`: a line of `hopd.tasks.addition` for each term, mod 1000, where a minus makes the
    carry a borrow; another that takes the sum from 0 if it is negative; the answer in tags. With the probability
    `drop_carry` each carry and borrow is forgotten."""
    first, *rest = expression.split()
    value, lines = int(first), []

    def line(a: int, sign: str, b: int) -> int:
        unit, columns, carry, total = {"+": 1, "-": -1}[sign], [], 0, 0
        for place in (10**i for i in range(DIGITS)):
            tens, digit = divmod(a // place % 10 + unit * (b // place % 10 + carry), 10)
            out = 0 if rng.random() < drop_carry else abs(tens)
            columns.append(f"{a // place % 10}{b // place % 10}{carry}{digit}{out}")
            total, carry = total + digit * place, out
        lines.append(f"{LABELS[len(lines)]}{digits(a)}{sign}{digits(b)}:{''.join(columns)}={digits(total)};")
        return total

    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        value = line(value, sign, int(term))
    if value >= MODULUS // 2:
        value = -line(0, "-", value)
    return "".join(lines) + f"<answer>{value}</answer>"


def make(out: Path) -> None:
    rng = random.Random(0)
    make_pair(out, examples(rng, 0.0), examples(rng, DROPPED_CARRIES), UPDATES, RATES, SYMBOLS)


def examples(rng: random.Random, drop_carry: float) -> Examples:
    dataset = ReasoningGym("chain_sum", size=1, seed=1_000_000, options=OPTIONS).dataset

    def of_update(update: int) -> Sequence[tuple[str, str]]:
        drawn = [dataset[BATCH * update + i] for i in range(BATCH)]
        return [(one["question"], worked(one["metadata"]["expression"], rng, drop_carry)) for one in drawn]

    return of_update


CHAIN_SUM = HorizonComparison(
    name="chain-sum",
    title="Chain sums: horizons on a dataset of reasoning-gym",
    source="After Table 1 of the paper, on a dataset that nobody here designed and models of our own",
    text="",
    plan={
        "OPD": (OPD, 32, 8),
        "POPD": ({"controller": "progressive", "start": 17, "increment": 10}, 32, 8),
        "TOPD 0.25": (topd(0.25), 64, 16),
        "TOPD 0.1": (topd(0.1), 64, 16),
    },
    setting=SETTING,
    make=make,
)
