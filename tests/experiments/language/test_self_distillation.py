"""Checks what a student that teaches itself learns to copy, what it reads as its own teacher, and the verdicts."""

import random

import pytest

from experiments.language.self_distillation import (
    LEARNS,
    SELF_DISTILLATION,
    SETTING,
    STEPS,
    accuracy_of_teacher,
    claims,
    examples,
)
from experiments.language.setting import OPD, quickstart
from hopd.quickstart import RECIPE
from hopd.recipe import TeacherModel
from hopd.tasks import Problem
from hopd.tasks.addition import RepeatedAddition
from tests.experiments.test_verdicts import runs, verdicts


def test_answers_copy_the_solution_in_their_prompt_or_there_is_none():
    of_update = examples(random.Random(0))
    asked = {problem.prompt for problem in RepeatedAddition(STEPS, 8000, held_out=True).problems}
    right, seen = 0.0, 0
    for update in range(24):
        for question, answer in of_update(update):
            assert len(answer) == LENGTH < SETTING.full_tokens
            solution, alone = question[:-QUESTION], question[-QUESTION:]
            assert solution == ("" if update % 4 == 0 else answer)
            assert alone not in asked
            if solution:
                right, seen = right + score(alone, answer), seen + 1
    assert 0.2 < right / seen < 0.35  # half are random, half of the others right on purpose, and a few by chance


LENGTH, QUESTION = 29 * STEPS + 4, 10


def score(question: str, answer: str) -> float:
    start, addend = int(question[:3][::-1]), int(question[4:7][::-1])
    right = f"{(start + STEPS * addend) % 1000:03d}"[::-1]
    return RepeatedAddition(STEPS, 1).score(Problem(0, question, right), answer)


def test_the_student_is_its_own_teacher_and_the_evaluation_has_no_solutions(tmp_path):
    recipe = quickstart("OPD", 0, tmp_path / "seed-0", OPD, 1, 1, SETTING)
    assert isinstance(recipe.teacher, TeacherModel)
    assert (recipe.teacher.model, recipe.teacher.prompt) == (recipe.student.model, "solution")
    assert "solution" not in str(recipe.evaluation)


def test_every_variant_is_a_recipe(tmp_path):
    for name, variant in SELF_DISTILLATION.plan.items():
        quickstart(name, 0, tmp_path / "seed-0", *variant, SETTING)


def test_the_accuracy_of_a_teacher_is_that_of_what_it_reads(tmp_path):
    """The packaged teacher, trained without solutions, reads one and goes on as if it were its answer."""
    recipe = quickstart("OPD", 0, tmp_path / "seed-0", OPD, 1, 1, SETTING)
    own = str(RECIPE.parent / "teacher")
    assert recipe.evaluation
    evaluation = recipe.evaluation.model_dump()
    evaluation["task"]["size"] = 16
    both = [
        accuracy_of_teacher(recipe.with_changes(student={"model": own}, teacher=teacher, evaluation=evaluation))
        for teacher in ({"model": own}, {"model": own, "prompt": "solution"})
    ]
    assert both[0] > 0.8
    assert both[0] != both[1]


@pytest.mark.parametrize(
    ("teacher", "untrained", "ends", "expected"),
    [
        (0.96, 0.08, LEARNS, ["holds", "holds"]),
        (0.90, 0.08, LEARNS - 0.01, ["holds in part", "does not hold"]),
        (0.90, 0.20, 0.1, ["does not hold", "does not hold"]),
    ],
)
def test_verdicts(tmp_path, teacher, untrained, ends, expected):
    assert verdicts("self-distillation", {"OPD": runs(untrained, ends, 9.0, teacher=teacher)}, tmp_path) == expected


def test_one_seed_of_three_holds_in_part():
    results = {"OPD": runs(0.0, 0.9, 9.0, 1, teacher=1.0) + runs(0.0, 0.1, 9.0, 2, teacher=1.0)}
    assert [claim.verdict for claim in claims(results)] == ["holds", "holds in part"]
