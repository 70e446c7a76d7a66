"""The recipes that ship with hopd load, and the paper's recipes hold the settings of the paper."""

from pathlib import Path

import pytest

import hopd
from hopd.horizon import Progressive, Whole
from hopd.objective import TopK
from hopd.recipe import FileSource, Recipe
from tests.recipe.content import reread

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
PAPER = [path for path in RECIPES if path.name.startswith("paper-")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_and_survives_a_round_trip_through_yaml(path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.name == path.stem
    assert reread(recipe) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_horizons_in_comments_of_a_shipped_recipe_are_valid(path: Path) -> None:
    offered = [
        line.removeprefix("# horizon: ")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("# horizon: ")
    ]
    for horizon in offered:
        Recipe.load(path, [f"horizon={horizon}"])
    assert len(offered) == (0 if path.stem == "smollm2-cpu" else 2)


def test_the_packaged_quickstart_is_the_one_in_recipes() -> None:
    packaged = Path(hopd.__file__).parent / "quickstart" / "recipe.yaml"
    (shown,) = [path for path in RECIPES if path.stem == "quickstart"]
    assert packaged.read_bytes() == shown.read_bytes()
    assert not any(path.is_symlink() for path in (packaged, shown))  # a copy of either directory alone must work


def test_there_is_a_recipe_for_each_pair_of_the_paper() -> None:
    students = {Recipe.load(path).student.model for path in PAPER}
    assert students == {"deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "nvidia/OpenMath-Nemotron-1.5B"}


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_a_paper_recipe_holds_table_3(path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.rollout.temperature == 1.0
    assert recipe.rollout.top_p == 1.0
    assert recipe.rollout.top_k == 0
    assert recipe.rollout.prompts == 64
    assert recipe.training.mini_batch == 64
    assert recipe.rollout.samples == 4
    assert recipe.objective == TopK(k=16, tail="paper")
    assert recipe.objective.gamma == 0
    assert recipe.rollout.prompt_tokens == 1024
    assert recipe.rollout.full_tokens == 15360
    assert recipe.training.learning_rate == 1e-6
    assert recipe.training.epochs == 2
    assert recipe.loss_window() == Whole()
    controller = recipe.controller()
    assert isinstance(controller, Progressive)
    assert (controller.full_tokens, controller.increment, controller.every) == (15360, 9, 1)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_a_paper_recipe_trains_and_evaluates_as_the_paper_does(path: Path) -> None:
    recipe = Recipe.load(path)
    assert isinstance(recipe.task, FileSource)
    assert "DAPO-Math-17k" in recipe.task.path
    assert recipe.evaluation
    assert isinstance(recipe.evaluation.task, FileSource)
    assert "aime_2024" in recipe.evaluation.task.path
    assert (recipe.evaluation.every, recipe.evaluation.samples, recipe.evaluation.measure) == (5, 16, "accuracy")
