"""Defines a teacher that is unreliable late: right in the first half of an answer, and no better than noise after it.

The task and the student are the quickstart's. The student lacks the carry, and nothing else: who learns it from the
first half and is left alone in the second has the whole task; who learns from all of the answer is taught noise.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.language.pairs import PACKAGED
from experiments.language.setting import HELD_OUT, Setting
from experiments.quickstart.make import BATCH, STEPS, Examples, fine_tune, save, training_pairs
from hopd.tasks.addition import DIGITS, LABELS, MODULUS, digits, prompt, scratchpad

ROLES = ("teacher", "student")
RELIABLE = STEPS // 2  # lines in which the teacher is right
UPDATES = 150
RATE = 5e-4

SETTING = Setting(
    task={"source": "addition", "steps": STEPS, "size": 8192},
    held_out={"held_out": True},
    full_tokens=360,
    problems=HELD_OUT,
)


def make(out: Path) -> None:
    """Writes `out/teacher`, the packaged teacher fine-tuned on answers with noise, and `out/student`, the packaged
    student as it is."""
    torch.manual_seed(0)
    teacher, student = (LlamaForCausalLM.from_pretrained(PACKAGED.parent / role).float() for role in ROLES)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(PACKAGED)
    fine_tune(teacher, tokenizer, examples(random.Random(0)), UPDATES, learning_rate=RATE, log=print)
    save(teacher, tokenizer, out / "teacher")
    save(student, tokenizer, out / "student")


def examples(rng: random.Random) -> Examples:
    """Returns answers with noise in the second half."""

    def of_update(update: int) -> Sequence[tuple[str, str]]:
        return [(prompt(*pair, STEPS), worked(*pair, rng)) for pair in training_pairs(rng, BATCH)]

    return of_update


def worked(start: int, addend: int, rng: random.Random) -> str:
    """Returns the teacher's answer: the task's own lines, and then lines whose sums have random digits.

    Labels, copies and carries are those of a right line, so that an answer ends as it would; each line goes on with the
    value that the line before it ends with. A right line and one with noise:

        a472+185:410507805125180=558;
        g558+185:513508804135120=302;
    """
    lines = [scratchpad(start, addend, RELIABLE).partition("#")[0]]
    value = (start + RELIABLE * addend) % MODULUS
    for label in LABELS[RELIABLE:STEPS]:
        columns, carry, total = [], 0, 0
        for place in range(DIGITS):
            a, b, noise = value // 10**place % 10, addend // 10**place % 10, rng.randrange(10)
            carry_out = (a + b + carry) // 10
            columns.append(f"{a}{b}{carry}{noise}{carry_out}")
            total += noise * 10**place
            carry = carry_out
        lines.append(f"{label}{digits(value)}+{digits(addend)}:{''.join(columns)}={digits(total)};")
        value = total
    return "".join(lines) + f"#{digits(value)}"
