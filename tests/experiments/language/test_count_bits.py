"""Checks worked solutions of counting bits by the dataset's own scorer, and by their arithmetic."""

import random
import re

from experiments.language.count_bits import SETTING, SYMBOLS, examples, worked
from experiments.quickstart.make import DROPPED_CARRIES, character_tokenizer
from hopd.assembly.prompts import build_task
from hopd.recipe import Recipe
from hopd.tasks import addition

LINE = re.compile(r"[a-q](\d{15})=(\d{5}):(\d\d);")


def the_task(**changes):
    settings = dict(SETTING.task) | {"size": 200} | changes
    return build_task(Recipe.load("recipes/quickstart.yaml", [f"task={settings}"]).task)


def solutions(drop_carry=0.0):
    rng = random.Random(0)
    return [(p, worked(p.answer["metadata"]["number"], rng, drop_carry)) for p in the_task().problems]


def test_worked_solutions_are_right_line_by_line_and_score_1():
    task = the_task()
    for problem, response in solutions():
        number, ones = problem.answer["metadata"]["number"], 0
        assert response.startswith(f"={number}:00;")
        lines = LINE.findall(response)
        assert len(lines) == 17
        for columns, half, counted in lines:
            assert int(columns[::3]) == number
            for digit, carry, of_half in zip(columns[::3], columns[1::3], columns[2::3], strict=True):
                assert (10 * int(carry) + int(digit)) // 2 == int(of_half)
            number, rest = divmod(number, 2)
            ones += rest
            assert (int(half), int(counted)) == (number, ones)
            assert columns[2::3] == half
        assert number == 0
        assert task.score(problem, response) == 1.0


def test_forgotten_carries_make_most_answers_wrong():
    task = the_task()
    assert sum(task.score(*solution) == 1 for solution in solutions(DROPPED_CARRIES)) < 60


def test_every_character_has_a_token_and_every_solution_fits():
    tokenizer = character_tokenizer([*addition.SYMBOLS, *SYMBOLS])
    for problem, response in solutions():
        assert tokenizer.unk_token_id not in tokenizer(problem.prompt + response).input_ids
        assert 471 <= len(tokenizer(response + tokenizer.eos_token).input_ids) <= 472 < SETTING.full_tokens


def test_no_number_is_learnt_from_and_evaluated():
    asked = {problem.prompt for problem in the_task(size=SETTING.problems, **SETTING.held_out).problems}
    of_update = examples(random.Random(0), 0.0)
    learnt = [question for update in range(500) for question, _ in of_update(update)]
    assert len(set(learnt)) > 3000
    assert not asked & set(learnt)
