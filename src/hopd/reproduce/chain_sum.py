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

# Problems of the dataset are numbered by seed + index: distillation has the first 8192, evaluation those from 10,000
# on, teacher and student learnt from those after 1,000,000.
SETTING = Setting(
    task={"source": "reasoning_gym", "name": "chain_sum", "size": 8192, "options": OPTIONS},
    held_out={"seed": 10_000},
    full_tokens=250,
    prompts=16,
    problems=128,
    training={"learning_rate": RATES[1], "schedule": "linear"},
)


def worked(expression: str, rng: random.Random, drop_carry: float = 0.0) -> str:
    """The response to an expression: lines as those of `hopd.tasks.addition`, but with all terms that are left, of
    which the first is taken in, mod 1000, where a minus makes the carry a borrow; a last line that takes the sum from 0
    if it is negative; the answer in tags. With the probability `drop_carry` each carry and borrow is forgotten. Of
    `15 - 43 + 61`:

        a510-340 +160           :530201407100191=279;
        b279+160                :210307603190101=330;
        <answer>33</answer>
    """
    first, *rest = expression.split()
    value = int(first)
    lines: list[str] = []

    def line(a: int, left: Sequence[tuple[str, int]]) -> int:
        (sign, b), carry, columns, total = left[0], 0, [], 0
        one = {"+": 1, "-": -1}[sign]
        for place in (10**i for i in range(DIGITS)):
            tens, digit = divmod(a // place % 10 + one * (b // place % 10 + carry), 10)
            out = 0 if rng.random() < drop_carry else abs(tens)
            columns.append(f"{a // place % 10}{b // place % 10}{carry}{digit}{out}")
            total, carry = total + digit * place, out
        terms = "".join(f"{sign}{digits(term)} " for sign, term in left).ljust(5 * (TERMS - 1))
        lines.append(f"{LABELS[len(lines)]}{digits(a)}{terms}:{''.join(columns)}={digits(total)};")
        return total

    terms = list(zip(rest[::2], map(int, rest[1::2]), strict=True))
    for taken in range(len(terms)):
        value = line(value, terms[taken:])
    if value >= MODULUS // 2:
        value = -line(0, [("-", value)])
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
    source="After Table 1 of the paper, on a dataset that nobody here designed, with models of our own",
    text=(
        f"`chain_sum` of reasoning-gym with {TERMS} terms of two digits, scored by the dataset's own scorer. It has "
        "answers and no worked solutions; ours have a line for each term that is taken in, 216 tokens on average. The "
        f"teacher is the packaged one, fine-tuned for {UPDATES[0]} updates on them; the student is that teacher, "
        f"fine-tuned for {UPDATES[1]} updates to forget half of the carries and borrows. Other problems of the dataset "
        "served for that than for distillation, and others again for evaluation. Steps are in the quickstart's ratio "
        f"of 2 : 3 : 6, of {SETTING.prompts} rollouts, at the learning rate that spoilt the student, {RATES[1]:g}, "
        "decaying to zero; POPD's start and increment are the quickstart's shares of the length. Rules for what we "
        "chose: the teacher must solve 95 % of held-out problems, and OPD must end within 3 points of it. Evaluated on "
        f"{SETTING.problems} problems. Seconds are the processor's, of training."
    ),
    plan={
        "OPD": (OPD, 32, 8),
        "POPD": ({"controller": "progressive", "start": 21, "increment": 4}, 48, 8),
        "TOPD 0.25": (topd(0.25), 96, 24),
        "TOPD 0.1": (topd(0.1), 96, 24),
    },
    setting=SETTING,
    make=make,
)
