"""A mistake in a recipe is an error that says where it is and what to write instead."""

import math
from typing import Any

import pytest

from hopd.errors import RecipeError
from hopd.recipe import Recipe
from tests.recipe.content import minimal


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("studnt", "unknown key studnt (did you mean 'student'?)"),
        ("student.modl", "unknown key student.modl (did you mean 'model'?)"),
        ("teacher.layer", "unknown key teacher.layer (did you mean 'layers'?)"),
        ("rollout.full_token", "unknown key rollout.full_token (did you mean 'full_tokens'?)"),
        ("training.lerning_rate", "unknown key training.lerning_rate (did you mean 'learning_rate'?)"),
        ("objective.estmator", "unknown key objective.estmator (did you mean 'estimator'?)"),
        ("checkpoint.keep_bst", "unknown key checkpoint.keep_bst (did you mean 'keep_best'?)"),
        ("task.stepz", "(did you mean 'steps'?)"),
        ("horizon.ratio", "horizon 'full' has no option 'ratio'"),
        ("zzzz", "unknown key zzzz"),
    ],
)
def test_an_unknown_key_is_an_error_with_its_place_and_the_nearest_name(place: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        Recipe.parse(minimal(**{place: 1}))
    assert sentence in str(error.value)


def test_an_unknown_key_deep_inside_is_an_error_with_the_nearest_name() -> None:
    evaluation = {"task": {"source": "reasoning_gym", "name": "gcd", "sise": 3}}
    with pytest.raises(RecipeError, match=r"unknown key evaluation\.task\.\S*sise \(did you mean 'size'\?\)"):
        Recipe.parse(minimal(evaluation=evaluation))
    teachers = {"large": {"modle": "x"}}
    task = {"source": "file", "path": "x.jsonl", "teacher": "judge"}
    with pytest.raises(RecipeError, match=r"unknown key teachers\.large\.modle \(did you mean 'model'\?\)"):
        Recipe.parse(minimal(teacher=None, teachers=teachers, task=task))


@pytest.mark.parametrize("key", ["path", "option"])
def test_the_suggested_name_is_one_that_this_source_takes(key: str) -> None:
    with pytest.raises(RecipeError) as error:
        Recipe.parse(minimal(**{f"task.{key}": "x"}))
    assert "unknown key" in str(error.value)
    assert "did you mean 'path'" not in str(error.value)
    assert "did you mean 'options'" not in str(error.value)


@pytest.mark.parametrize("place", ["name", "student", "task", "rollout", "horizon", "training"])
def test_a_missing_section_is_named(place: str) -> None:
    content = minimal()
    del content[place]
    with pytest.raises(RecipeError, match=f"{place} is missing"):
        Recipe.parse(content)


@pytest.mark.parametrize("place", ["student.model", "rollout.prompts", "rollout.full_tokens", "training.learning_rate"])
def test_a_missing_value_is_named_with_its_place(place: str) -> None:
    section, key = place.split(".")
    content = minimal()
    del content[section][key]
    with pytest.raises(RecipeError, match=rf"{section}\.{key} is missing"):
        Recipe.parse(content)


def test_several_mistakes_are_reported_together() -> None:
    with pytest.raises(RecipeError) as error:
        Recipe.parse(minimal(**{"rollout.prompts": 0, "training.steps": "few", "studnt": 1}))
    for place in ("rollout.prompts", "training.steps", "studnt"):
        assert place in str(error.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("name", "two words"),
        ("name", "../elsewhere"),
        ("seed", "seven"),
        ("student.layers", "all"),
        ("task.steps", 27),
        ("task.steps", 0),
        ("task.size", 90_001),
        ("rollout.prompts", 0),
        ("rollout.prompts", 2.5),
        ("rollout.samples", 0),
        ("rollout.full_tokens", 0),
        ("rollout.temperature", 0),
        ("rollout.top_p", 0),
        ("rollout.top_p", 1.1),
        ("rollout.top_k", -1),
        ("rollout.too_long", "cut"),
        ("training.steps", 0),
        ("training.steps", "few"),
        ("training.learning_rate", 0),
        ("training.learning_rate", math.nan),
        ("training.schedule", "cosin"),
        ("training.decay", 0),
        ("training.decay", 20),
        ("training.ema", 0),
        ("training.ema", 1),
        ("training.clip_norm", 0),
        ("training.weight_decay", -0.1),
        ("training.warmup_steps", -1),
        ("training.precision", "fp16"),
        ("training.betas", [0.9]),
        ("training.betas", [0.9, 2.0]),
        ("checkpoint.keep_last", 0),
        ("trackers", ["mlflow"]),
        ("horizon", "full"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_an_error_that_names_its_place(place: str, value: object) -> None:
    with pytest.raises(RecipeError, match=place.replace(".", r"\.(addition\.)?")):
        Recipe.parse(minimal(**{place: value}))


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        ("horizon", {"controller": "truncated", "ratio": 10}, r"got 10 \(did you mean tokens: 10\?"),
        ("horizon", {"controller": "truncated", "tokens": 101}, "at most the full length 100, got 101"),
        ("horizon", {"controller": "ful"}, r"did you mean 'full'"),
        ("horizon", {"controller": "full", "rollouts": 0}, "horizon rollouts must be at least 1, got 0"),
        ("horizon", {"controller": "full", "rollouts": 2, "whole": 3}, "whole must be at most rollouts = 2, got 3"),
        ("horizon", {"controller": "full", "whole": 5}, r"the 4 rollouts of a step .*got 5; write horizon\.roll"),
        ("horizon", {"controller": "full", "continue": "yes"}, "continue must be true or false, got 'yes'"),
        ("horizon", {"controller": "full", "continues": True}, r"no option 'continues' \(did you mean 'continue'\?\)"),
        ("window", {"kind": "frist", "tokens": 3}, r"did you mean 'first'"),
        ("window", {"kind": "first", "tokens": 0}, "whole number of at least 1, got 0"),
        ("objective", {"estimator": "top_k", "k": 0}, "k must be at least 1, got 0"),
        ("objective", {"importance_cap": 0}, "objective: importance_cap must be positive, got 0"),
        ("objective", {"estimator": "top_k", "divergence": "jsd"}, "not to 'top_k'; write estimator: full"),
        (
            "objective",
            {"gamma": 0.5},
            "unknown key objective.gamma: gamma belongs to estimator: sampled, not to 'full'",
        ),
        (
            "objective",
            {"estimator": "topk"},
            r"objective\.estimator must be one of .*got 'topk' \(did you mean 'top_k'",
        ),
        (
            "training.decay",
            0.2,
            r"decay belongs to schedule: wsd, and the schedule is constant; remove decay, or write",
        ),
        ("training.mini_batch", 3, r"mini_batch must divide rollout\.prompts = 4, got 3"),
    ],
)
def test_options_that_contradict_each_other_are_an_error_before_anything_is_loaded(
    place: str, value: object, sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        Recipe.parse(minimal(**{place: value}))


def test_rollouts_that_continue_and_mini_batches_exclude_each_other() -> None:
    mini = {"training.mini_batch": 2}
    assert Recipe.parse(minimal(horizon={"controller": "full", "continue": False}, **mini))
    with pytest.raises(RecipeError, match=r"with horizon\.continue .*; write no training\.mini_batch"):
        Recipe.parse(minimal(horizon={"controller": "full", "continue": True}, **mini))


@pytest.mark.parametrize("keys", ["old", True])
def test_keys_are_kept_or_refreshed(keys: object) -> None:
    with pytest.raises(RecipeError, match=r"rollout\.engine\.keys: input should be 'kept' or 'refreshed', got "):
        Recipe.parse(minimal(**{"rollout.engine": {"kind": "native", "keys": keys}}))


@pytest.mark.parametrize("source", ["additon", None, 3])
def test_an_unknown_source_is_an_error_that_lists_the_known_ones(source: object) -> None:
    with pytest.raises(
        RecipeError, match=r"task\.source must be one of addition, .*file, reasoning_gym, or my\.module:Name"
    ):
        Recipe.parse(minimal(task={"source": source}))


def test_the_error_names_the_recipe() -> None:
    with pytest.raises(RecipeError, match=r"^mine\.yaml: "):
        Recipe.parse(minimal(studnt=1), where="mine.yaml")


@pytest.mark.parametrize("changes", [{"training.epochs": 2}, {"training.steps": None}])
def test_a_run_has_exactly_one_of_steps_and_epochs(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="either steps or epochs: write steps: 200, or epochs: 2"):
        Recipe.parse(minimal(**changes))


@pytest.mark.parametrize("changes", [{"teachers": {"large": {"model": "l"}}}, {"teacher": None}])
def test_a_run_has_exactly_one_of_a_teacher_and_teachers_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="either one teacher, or several teachers by name"):
        Recipe.parse(minimal(**changes))


@pytest.mark.parametrize("task", [{"source": "addition"}, {"source": "file", "path": "rows.jsonl"}])
def test_several_teachers_need_a_column_that_names_them(task: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"task\.teacher must name the column"):
        Recipe.parse(minimal(teacher=None, teachers={"large": {"model": "l"}}, task=task))


@pytest.mark.parametrize("options", [{}, {"ratio": 0.1, "tokens": 9}])
def test_a_truncated_horizon_has_exactly_one_of_ratio_and_tokens(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="either ratio or tokens"):
        Recipe.parse(minimal(horizon={"controller": "truncated"} | options))


def test_an_evaluation_has_at_most_one_interval() -> None:
    evaluation = {"task": {"source": "addition"}, "every": 5}
    assert Recipe.parse(minimal(evaluation=evaluation)).evaluation
    with pytest.raises(RecipeError, match=r"every \(steps\) or every_flops, not both"):
        Recipe.parse(minimal(evaluation=evaluation | {"every_flops": 1e9}))


def test_a_greedy_evaluation_has_one_sample() -> None:
    evaluation = {"task": {"source": "addition"}, "temperature": 0}
    assert Recipe.parse(minimal(evaluation=evaluation)).evaluation
    with pytest.raises(RecipeError, match="temperature 0 is greedy"):
        Recipe.parse(minimal(evaluation=evaluation | {"samples": 2}))
