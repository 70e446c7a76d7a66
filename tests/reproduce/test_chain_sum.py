"""The worked solutions of chain sums, judged by the dataset's own scorer, and read by a check of their arithmetic."""

import random
import re

from hopd.quickstart.make import character_tokenizer
from hopd.recipe import Recipe
from hopd.reproduce.chain_sum import DROPPED_CARRIES, SETTING, SYMBOLS, examples, worked
from hopd.tasks import addition, build_task

LINE = re.compile(r"([a-e])(\d{3})([+-])(\d{3}) [-+\d ]{15}:(\d{5})(\d{5})(\d{5})=(\d{3});")
TASK = build_task(Recipe.load("recipes/quickstart.yaml", [f"task={dict(SETTING.task) | {'size': 200}}"]).task)


def solutions(drop_carry=0.0):
    rng = random.Random(0)
    return [(p, worked(p.answer["metadata"]["expression"], rng, drop_carry)) for p in TASK.problems]


def number(digits):
    """Of digits that are written least significant first."""
    return int(digits[::-1])


def test_worked_solutions_are_right_line_by_line_and_score_1():
    negative = 0
    for problem, response in solutions():
        value = int(problem.answer["metadata"]["expression"].split()[0])
        lines = LINE.findall(response)
        for _, a, sign, b, *columns, result in lines:
            assert number(a) in (value % 1000, 0)
            one, carry = {"+": 1, "-": -1}[sign], 0
            value = number(a) + one * number(b)
            assert number(result) == value % 1000
            for x, y, column in zip(a, b, columns, strict=True):
                first, second, carry_in, digit, carry_out = map(int, column)
                assert (first, second, carry_in) == (int(x), int(y), carry)
                assert first + one * (second + carry_in) == digit + one * 10 * carry_out
                carry = carry_out
            value %= 1000
        negative += len(lines) == 5
        assert TASK.score(problem, response) == 1.0
    assert 40 < negative < 160


def test_forgotten_carries_make_most_answers_wrong():
    assert sum(TASK.score(*solution) == 1 for solution in solutions(DROPPED_CARRIES)) < 60


def test_every_character_has_a_token_and_every_solution_fits():
    tokenizer = character_tokenizer([*addition.SYMBOLS, *SYMBOLS])
    for problem, response in solutions():
        ids = tokenizer(problem.prompt + response).input_ids
        assert tokenizer.unk_token_id not in ids
        assert len(tokenizer(response).input_ids) < SETTING.full_tokens


def test_models_learn_from_problems_of_their_own():
    asked = {problem.prompt for problem in TASK.problems}
    first, second = (examples(random.Random(0), 0.0)(update) for update in (0, 1))
    assert len({question for question, _ in [*first, *second]} - asked) == len(first) + len(second)
