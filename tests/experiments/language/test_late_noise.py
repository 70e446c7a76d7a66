"""Checks answers of a teacher that is unreliable late: right lines, lines with noise, and what both have in common."""

import random
import re
from collections import Counter

import torch

from experiments.language import late_noise
from experiments.language.late_noise import RELIABLE, SETTING, examples, worked
from experiments.quickstart.make import STEPS
from hopd.model import load
from hopd.tasks import RepeatedAddition
from hopd.tasks.addition import is_held_out, scratchpad

LINE = re.compile(r"([a-l])(\d{3})\+(\d{3}):(\d{5})(\d{5})(\d{5})=(\d{3});")
HALF = RELIABLE * 29  # characters


def number(digits):
    """Returns the number whose digits are written least significant first."""
    return int(digits[::-1])


def answers():
    rng = random.Random(0)
    for problem in RepeatedAddition(steps=STEPS, size=300).problems:
        pair = number(problem.prompt[:3]), number(problem.prompt[4:7])
        yield problem, pair, worked(*pair, rng)


def test_the_first_half_is_right():
    for _, (start, addend), response in answers():
        assert response[:HALF] == scratchpad(start, addend, STEPS)[:HALF]


def test_labels_copies_and_carries_are_right_to_the_end():
    for _, (start, addend), response in answers():
        assert len(response) == len(scratchpad(start, addend, STEPS))
        lines = LINE.findall(response)
        assert [line[0] for line in lines] == list("abcdefghijkl")
        value = f"{start:03d}"[::-1]
        for _, before, added, *columns, after in lines:
            assert (before, number(added)) == (value, addend)
            carry = 0
            for place, column in enumerate(columns):
                a, b, carry_in, digit, carry_out = map(int, column)
                assert (a, b, carry_in) == (int(before[place]), int(added[place]), carry)
                assert carry_out == (a + b + carry) // 10
                assert digit == int(after[place])
                carry = carry_out
            value = after
        assert response.endswith(f";#{value}")


def test_digits_of_sums_in_the_second_half_are_noise():
    task = RepeatedAddition(steps=STEPS, size=300)
    noise = Counter(digit for *_, response in answers() for line in LINE.findall(response[HALF:]) for digit in line[-1])
    assert sum(noise.values()) == 300 * 6 * 3
    assert all(440 < noise[digit] < 640 for digit in "0123456789")
    assert sum(task.score(problem, response) for problem, _, response in answers()) < 5


def test_examples_are_the_same_again_and_not_of_pairs_that_are_evaluated():
    first, again = (list(examples(random.Random(0))(0)) for _ in range(2))
    assert first == again
    assert SETTING.held_out == {"held_out": True}
    assert not any(is_held_out(number(prompt[:3]), number(prompt[4:7])) for prompt, _ in first)


def test_the_student_is_the_packaged_one(tmp_path, monkeypatch):
    monkeypatch.setattr(late_noise, "UPDATES", 1)
    monkeypatch.setattr(late_noise, "BATCH", 2)
    late_noise.make(tmp_path)
    made, packaged, teacher = (
        load(source).model.state_dict()
        for source in (str(tmp_path / "student"), "package:hopd/quickstart/student", str(tmp_path / "teacher"))
    )
    assert all(torch.equal(made[name], packaged[name]) for name in packaged)
    assert not all(torch.equal(made[name], teacher[name]) for name in packaged)
