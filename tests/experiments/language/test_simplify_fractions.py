"""Checks worked solutions of simplifying fractions by the dataset's own scorer, and by their arithmetic."""

import random
import re
from math import gcd

from experiments.language import simplify_fractions
from experiments.language.simplify_fractions import FACTORS, SETTING, SYMBOLS, examples, worked
from experiments.quickstart.make import DROPPED_CARRIES, character_tokenizer
from hopd.assembly.prompts import build_task
from hopd.model import load
from hopd.recipe import Recipe
from hopd.tasks import addition

LINE = re.compile(r"[a-d]([235]):(\d{15})(\d)=(\d{5})/(\d{15})(\d)=(\d{5}):(\d{5})/(\d{5});")


def the_task(**changes):
    settings = dict(SETTING.task) | {"size": 200} | changes
    return build_task(Recipe.load("recipes/quickstart.yaml", [f"task={settings}"]).task)


def fraction(problem) -> tuple[int, int]:
    metadata = problem.answer["metadata"]
    return metadata["numerator"], metadata["denominator"]


def solutions(drop_carry=0.0):
    rng = random.Random(0)
    return [(p, worked(*fraction(p), rng, drop_carry)) for p in the_task().problems]


def divided(columns, number, prime):
    """Checks short division column by column, and returns quotient and rest."""
    assert int(columns[::3]) == number
    rest = 0
    for digit, carry, quotient in zip(columns[::3], columns[1::3], columns[2::3], strict=True):
        assert int(carry) == rest
        of_quotient, rest = divmod(10 * rest + int(digit), prime)
        assert int(quotient) == of_quotient
    return int(columns[2::3]), rest


def test_worked_solutions_are_right_line_by_line_and_score_1():
    task = the_task()
    for problem, response in solutions():
        above, below = fraction(problem)
        assert response.startswith(f"={above}/{below};")
        lines = LINE.findall(response)
        assert 3 <= len(lines) <= 4
        for prime, *line in lines:
            upper, upper_rest, upper_quotient, lower, lower_rest, lower_quotient, new_above, new_below = line
            assert divided(upper, above, int(prime)) == (int(upper_quotient), int(upper_rest))
            assert divided(lower, below, int(prime)) == (int(lower_quotient), int(lower_rest))
            if upper_rest == lower_rest == "0":
                above, below = int(upper_quotient), int(lower_quotient)
            assert (int(new_above), int(new_below)) == (above, below)
        assert gcd(above, below) == 1
        assert response.endswith(f";<answer>{above}/{below}</answer>")
        assert task.score(problem, response) == 1.0


def test_primes_are_tried_in_order_and_again_after_a_success():
    for _, response in solutions():
        tried = [int(line[0]) for line in LINE.findall(response)]
        assert tried == sorted(tried)
        assert set(tried) == set(FACTORS)
        assert all(tried.count(prime) <= power for prime, power in FACTORS.items())


def test_forgotten_carries_make_nearly_all_answers_wrong():
    task = the_task()
    assert sum(task.score(*solution) == 1 for solution in solutions(DROPPED_CARRIES)) < 10


def test_every_character_has_a_token_and_every_solution_fits():
    tokenizer = character_tokenizer([*addition.SYMBOLS, *SYMBOLS])
    for problem, response in [*solutions(), *solutions(DROPPED_CARRIES)]:
        assert tokenizer.unk_token_id not in tokenizer(problem.prompt + response).input_ids
        assert len(problem.prompt) == 110
        assert 200 < len(tokenizer(response + tokenizer.eos_token).input_ids) < SETTING.full_tokens


def test_no_fraction_is_learnt_from_and_evaluated():
    asked = {problem.prompt for problem in the_task(size=SETTING.problems, **SETTING.held_out).problems}
    of_update = examples(random.Random(0), 0.0)
    learnt = [question for update in range(500) for question, _ in of_update(update)]
    assert len(set(learnt)) > 3900
    assert not asked & set(learnt)


def test_examples_are_the_same_again():
    first, again = (list(examples(random.Random(0), DROPPED_CARRIES)(0)) for _ in range(2))
    assert first == again


def test_teacher_and_student_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(simplify_fractions, "UPDATES", (1, 1))
    monkeypatch.setattr(simplify_fractions, "BATCH", 2)
    simplify_fractions.make(tmp_path)
    teacher, student = (load(str(tmp_path / role)) for role in ("teacher", "student"))
    assert teacher.tokenizer.get_vocab() == student.tokenizer.get_vocab()
    assert set(SYMBOLS) <= set(teacher.tokenizer.get_vocab())
