"""Compares horizons on counting bits: a dataset of reasoning-gym, and a teacher trained on worked solutions of ours."""

import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from experiments.language.horizons import HorizonComparison
from experiments.language.pairs import SHARPENED, make_pair, not_evaluated
from experiments.language.setting import OPD, Setting, topd
from experiments.quickstart.make import DROPPED_CARRIES, Examples
from hopd.tasks.addition import LABELS

DIGITS = 5
HALVINGS = 17  # 2^17 is more than any number of five digits
OPTIONS = {"min_n": 10 ** (DIGITS - 1), "max_n": 10**DIGITS - 1}
SYMBOLS = " /<>?H"  # of its questions and answers, that the packaged models have no token for
BATCH = 8
UPDATES = (800, 100)
RATES = (1e-3, 5e-4)

# The dataset numbers its problems by seed + index: distillation has the first 8192, evaluation those from 10,000 on,
# and teacher and student learn from those after 1,000,000.
SETTING = Setting(
    task={"source": "reasoning_gym", "name": "count_bits", "size": 8192, "options": OPTIONS},
    held_out={"seed": 10_000},
    full_tokens=510,
    prompts=16,
    problems=128,
)


def worked(number: int, rng: random.Random, drop_carry: float = 0.0) -> str:
    """Returns the response: the number, a line for each halving, the answer in tags.

    A line has for each digit the digit, the carry into it and the half's digit, then the half, and how many halvings
    have left a remainder. Each carry is forgotten with probability `drop_carry`. The first lines for 98543, which is
    two times 49271 plus one:

        =98543:00;
        a904814512402311=49271:01;
    """
    ones = 0
    lines = [f"={number}:00;"]
    for label in LABELS[:HALVINGS]:
        columns, carry, half = [], 0, 0
        for digit in map(int, f"{number:0{DIGITS}d}"):
            of_half, rest = divmod(10 * carry + digit, 2)
            columns.append(f"{digit}{carry}{of_half}")
            half = 10 * half + of_half
            carry = 0 if rng.random() < drop_carry else rest
        number, ones = half, ones + rest
        lines.append(f"{label}{''.join(columns)}={number:0{DIGITS}d}:{ones:02d};")
    return "".join(lines) + f"<answer>{ones}</answer>"


def make(out: Path) -> None:
    """Writes teacher and student."""
    rng = random.Random(0)
    make_pair(out, examples(rng, 0.0), examples(rng, DROPPED_CARRIES), UPDATES, RATES, SYMBOLS)


def examples(rng: random.Random, drop_carry: float) -> Examples:
    """Returns worked solutions for numbers that are not evaluated."""
    others = not_evaluated("count_bits", OPTIONS, SETTING)

    def of_update(update: int) -> Sequence[tuple[str, str]]:
        drawn = islice(others, BATCH)
        return [(one["question"], worked(one["metadata"]["number"], rng, drop_carry)) for one in drawn]

    return of_update


COUNT_BITS = HorizonComparison(
    name="count-bits",
    title="Counting bits: horizons on a dataset of reasoning-gym",
    source="After Table 1 of the paper, on a dataset that nobody here designed, with models of our own",
    text=(
        f"`count_bits` of reasoning-gym with numbers of {DIGITS} digits, scored by the dataset's own scorer. It has "
        f"answers and no worked solutions; ours halve the number {HALVINGS} times, digit by digit, and count the "
        f"remainders: 471 tokens. The teacher is the packaged one, fine-tuned for {UPDATES[0]} updates on them. "
        f"{SHARPENED} "
        f"The student is that teacher, fine-tuned for {UPDATES[1]} updates to forget half of the carries. No number "
        "that is evaluated was among those that teacher and student learnt from. Training is the quickstart's, with "
        f"twice as many steps, of {SETTING.prompts} rollouts; POPD's start and increment are the quickstart's shares "
        "of the length. Rules for what we chose: the teacher must solve 95 % of held-out problems, and OPD must end "
        "within 3 points of it (a learning rate of 5e-4 that decays, tried first, left OPD swinging). "
        f"Evaluated on {SETTING.problems} problems. Seconds are the processor's, of training."
    ),
    plan={
        "OPD": (OPD, 32, 4),
        "POPD": ({"controller": "progressive", "start": 42, "increment": 8}, 48, 6),
        "TOPD 0.1": (topd(0.1), 96, 12),
    },
    setting=SETTING,
    make=make,
    remarks=(
        "We read 128 answers of each of the first seed's last students, and what is wrong first in each. No student "
        "forgets a carry any more, however short its horizon was: the skill was learnt in the first tenth, and is "
        "there on every line. After TOPD 26 answers are wrong: 11 only in the answer between the tags, 10 in the "
        "count, 5 in a label or a copy. After POPD, whose horizon ended at 418 of 471 tokens, 29 are: 26 only in the "
        "answer between the tags, two in the last line. What the horizon never reached was known before, was "
        "not taught again, and drifted while the rest was learnt. It drifts more at higher rates: with the first seed "
        "TOPD ended at 69 % with 2e-4 and half of the steps, and with 5e-4, decaying, at 12 %, POPD at 62 %."
    ),
)
