"""Checks two-phase arithmetic: worked answers, broken habits, held-out pairs, and its name in a recipe."""

import random
import re

import pytest

from experiments.tasks.two_phase import TwoPhase, worked
from hopd.assembly.prompts import build_task
from hopd.errors import TaskError
from hopd.recipe import Recipe
from hopd.tasks.addition import is_held_out

TRIPLING = re.compile(r"([a-z])(\d{3})\*3:(\d{4})(\d{4})(\d{4})=(\d{3});")


def number(digits):
    """Returns the number whose digits are written least significant first."""
    return int(digits[::-1])


def solution(problem, steps, **habits):
    start, addend = number(problem.prompt[:3]), number(problem.prompt[4:7])
    return start, addend, worked(start, addend, steps, random.Random(0), **habits)


def test_the_worked_answer_adds_and_then_triples():
    task = TwoPhase(steps=4, size=50)
    for problem in task.problems:
        start, addend, response = solution(problem, 4)
        value = (start + 4 * addend) % 1000
        lines = TRIPLING.findall(response)
        assert [line[0] for line in lines] == list("efgh")
        for _, before, *columns, after in lines:
            assert number(before) == value
            carry = 0
            for place, column in enumerate(columns):
                a, carry_in, digit, carry_out = map(int, column)
                assert (a, carry_in) == (int(before[place]), carry)
                assert 3 * a + carry_in == digit + 10 * carry_out
                assert digit == int(after[place])
                carry = carry_out
            value = 3 * value % 1000
            assert number(after) == value
        assert problem.answer == response[-3:]
        assert task.score(problem, response) == 1.0
        assert len(response) == 4 * 29 + 4 * 24 + 4


def test_broken_habits_change_their_own_half_only():
    task = TwoPhase(steps=6, size=50)
    half, changed, wrong = 6 * 29, {"drop_carry": [0, 0], "double": [0, 0]}, 0.0
    for problem in task.problems:
        right = solution(problem, 6)[2]
        for habit, halves in changed.items():
            broken = solution(problem, 6, **{habit: 1.0})[2]
            halves[0] += broken[:half] != right[:half]
            halves[1] += broken[half:] != right[half:]
            wrong += 1 - task.score(problem, broken)
    assert changed["double"][0] == 0
    assert changed["double"][1] > 45
    assert changed["drop_carry"][0] > 45
    assert wrong > 90


@pytest.mark.parametrize("held_out", [False, True])
def test_evaluation_has_pairs_of_its_own(held_out):
    for problem in TwoPhase(steps=2, size=100, held_out=held_out).problems:
        assert is_held_out(number(problem.prompt[:3]), number(problem.prompt[4:7])) == held_out


def test_a_recipe_names_it():
    recipe = Recipe.load(
        "recipes/quickstart.yaml", ["task={source: 'experiments.tasks.two_phase:TwoPhase', steps: 3, size: 5}"]
    )
    assert build_task(recipe.task) == TwoPhase(steps=3, size=5)


@pytest.mark.parametrize(("options", "sentence"), [("steps: 14", "1 to 13 steps"), ("size: 0", "1 to 90000 problems")])
def test_a_recipe_that_asks_for_too_much_is_refused(options, sentence):
    task = f"task={{source: 'experiments.tasks.two_phase:TwoPhase', {options}}}"
    with pytest.raises(TaskError, match=sentence):
        build_task(Recipe.load("recipes/quickstart.yaml", [task]).task)
