"""What `rollout.off_policy` refuses, in words."""

from typing import Any

import pytest

from hopd.errors import RecipeError
from hopd.recipe import Recipe
from tests.recipe.content import minimal, reread

FILE = {"source": "file", "path": "p.jsonl"}
MIXED = {"share": 0.25, "column": "solution"}


def mixed(**changes: Any) -> Recipe:
    return Recipe.parse(minimal(**{"task": FILE, "rollout.off_policy": MIXED} | changes))


@pytest.mark.parametrize("objective", [{}, {"estimator": "top_k"}, {"divergence": "forward_kl"}, {"stop": "class"}])
def test_exact_losses_are_taken_and_survive_a_round_trip(objective: dict[str, Any]) -> None:
    recipe = mixed(objective=objective)
    assert reread(recipe) == recipe
    assert recipe.rollout.sampled_share == 0.75


def test_without_the_key_everything_is_sampled() -> None:
    assert Recipe.parse(minimal()).rollout.sampled_share == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rollout.off_policy": {"share": 0}}, "rollout.off_policy.share"),
        ({"rollout.off_policy": {"share": 1.5, "column": "x"}}, "rollout.off_policy.share"),
        ({"rollout.off_policy": {"shar": 0.5}}, "did you mean 'share'"),
        ({"rollout.off_policy": 0.5}, "rollout.off_policy"),
        ({"rollout.off_policy": {"share": 0.5}}, "write off_policy: {share: 0.5, column: COLUMN}"),
        ({"task": {"source": "addition"}}, "column is a column of task: {source: file}"),
        ({"task": {"source": "addition"}, "rollout.off_policy": {"share": 1}}, "{source: addition} has no reference"),
        ({"objective": {"estimator": "sampled"}}, "write estimator: full or top_k"),
        ({"objective": {"estimator": "sampled", "control_variate": True}}, "biased on reference answers"),
        ({"objective": {"importance_cap": 2}}, "remove importance_cap, or off_policy"),
        ({"objective": {"estimator": "top_k", "importance_cap": 2}}, "were not sampled"),
        ({"horizon": {"controller": "adaptive"}, "rollout.off_policy": MIXED | {"share": 1}}, "leaves none"),
        (
            {
                "horizon": {"controller": "plateau", "start": 10, "increment": 5},
                "rollout.off_policy": MIXED | {"share": 1},
            },
            "a smaller share",
        ),
    ],
)
def test_what_cannot_be_right_is_refused_with_what_to_write(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        mixed(**changes)
    assert sentence in str(error.value)
    assert len(str(error.value)) <= 400


def test_adaptive_horizons_learn_from_the_samples_that_are_left() -> None:
    mixed(horizon={"controller": "adaptive"})
