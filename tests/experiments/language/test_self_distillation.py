"""Checks what a student that teaches itself learns to copy, what it reads as its own teacher, and the verdicts."""

import random

import pytest

from experiments.catalogue import EXPERIMENTS
from experiments.language.self_distillation import LEARNS, SETTING, accuracy_of_teacher, examples
from experiments.language.setting import OPD, quickstart
from hopd.quickstart import RECIPE
from hopd.tasks import Problem
from hopd.tasks.addition import RepeatedAddition
from tests.experiments.test_verdicts import runs, verdicts


def test_every_other_batch_copies_the_solution_in_its_prompt_right_or_wrong():
    of_update = examples(random.Random(0))
    asked = {problem.prompt: problem for problem in RepeatedAddition(6, 8000, held_out=True).problems}
    right, seen = 0, 0
    for update in range(0, 40, 2):
        for question, answer in of_update(update):
            assert 0 < len(answer) == 178 < SETTING.full_tokens
            assert "#" not in question
        for question, answer in of_update(update + 1):
            solution, _, rest = question.partition("#")
            assert question == answer + question[len(answer) :]
            assert solution == answer.partition("#")[0]
            assert question[len(answer) :] not in asked
            assert rest.endswith("*f:")
            right += RepeatedAddition(6, 1).score(problem_of(question[len(answer) :]), answer)
            seen += 1
    assert 0.4 < right / seen < 0.7  # half are right on purpose, a few by chance


def problem_of(question):
    start, addend = int(question[:3][::-1]), int(question[4:7][::-1])
    return Problem(0, question, f"{(start + 6 * addend) % 1000:03d}"[::-1])


def test_the_student_is_its_own_teacher_and_the_evaluation_has_no_solutions(tmp_path):
    recipe = quickstart("OPD", 0, tmp_path / "seed-0", OPD, 1, 1, SETTING)
    assert recipe.teacher
    assert (recipe.teacher.model, recipe.teacher.prompt) == (recipe.student.model, "solution")
    assert "solution" not in str(recipe.evaluation)


def test_the_accuracy_of_a_teacher_is_that_of_what_it_reads(tmp_path):
    """The packaged teacher, trained without solutions, reads one and goes on as if it were its answer."""
    recipe = quickstart("OPD", 0, tmp_path / "seed-0", OPD, 1, 1, SETTING)
    own = str(RECIPE.parent / "teacher")
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
    assert [claim.verdict for claim in EXPERIMENTS["self-distillation"].claims(results)] == ["holds", "holds in part"]
