"""A recipe is the same value from YAML, from Python and from what a run wrote, with overrides applied."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hopd.errors import RecipeError
from hopd.horizon import Block, Evidence, First, Full, Plateau, Truncated, Whole
from hopd.objective import Full as FullVocabulary
from hopd.objective import Sampled, TopK
from hopd.recipe import AdditionSource, ModelSource, Recipe, RolloutSection, TrainingSection
from hopd.run.directory import RunDirectory
from tests.recipe.content import MINIMAL, minimal, reread, written

RECIPES = Path(__file__).parents[2] / "recipes"

COMPLETE = """
name: complete-1.0
seed: 7
output: elsewhere
student: {model: s, layers: [0, 2, 4], trust_remote_code: true}
teachers:
  large: {model: l}
  small: {model: m}
task: {source: file, path: rows.jsonl, prompt: question, answer: solution, check: exact, teacher: judge, limit: 9}
rollout: {prompts: 8, samples: 2, full_tokens: 100, prompt_tokens: 50, too_long: error, temperature: 0.7, top_k: 5}
horizon: {controller: progressive, start: 10, increment: 3, every: 2, rollouts: 12, whole: 2}
window: {kind: segment, start: 0.2, end: 0.3}
objective: {estimator: sampled, gamma: 0.5, control_variate: true, importance_cap: 2.0}
training: {epochs: 1.5, mini_batch: 4, learning_rate: 1e-6, schedule: cosine, betas: [0.9, 0.95], precision: bf16}
evaluation:
  task: {source: reasoning_gym, name: chain_sum, size: 10, options: {min_terms: 3}}
  every_flops: 1e12
  samples: 4
checkpoint: {every: 5, keep_last: 1, keep_best: true}
trackers: [trackio, wandb]
"""


def test_the_smallest_recipe_has_the_documented_defaults() -> None:
    recipe = Recipe.parse(minimal())
    assert recipe.directory == Path("runs/small")
    assert recipe.controller() == Full(100)
    assert recipe.loss_window() == Whole()
    assert recipe.objective == FullVocabulary()
    assert recipe.evaluation is None


@pytest.mark.parametrize("text", [MINIMAL, COMPLETE])
def test_a_recipe_survives_a_round_trip_through_yaml(text: str) -> None:
    recipe = Recipe.parse(yaml.safe_load(text))
    assert reread(recipe) == recipe


def test_a_recipe_whose_rollouts_continue_is_written_with_the_word_that_it_was_read_with() -> None:
    horizon = {"controller": "truncated", "ratio": 0.1, "continue": True, "rollouts": 16}
    recipe = Recipe.parse(minimal(horizon=horizon))
    assert recipe.horizon == Truncated(100, ratio=0.1, continues=True, rollouts=16)
    assert reread(recipe) == recipe
    assert yaml.safe_load(recipe.yaml())["horizon"].items() >= horizon.items()
    assert "continues" not in recipe.yaml()
    assert recipe.with_changes(horizon=recipe.horizon).controller() == recipe.horizon


@pytest.mark.parametrize("estimator", ["sampled", "top_k", "full"])
def test_every_estimator_has_an_importance_cap(estimator: str) -> None:
    recipe = Recipe.parse(minimal(objective={"estimator": estimator, "importance_cap": 2}))
    assert reread(recipe) == recipe
    assert yaml.safe_load(recipe.yaml())["objective"]["importance_cap"] == 2.0


@pytest.mark.parametrize(
    "horizon",
    [
        {"controller": "full"},
        {"controller": "truncated", "ratio": 0.025},
        {"controller": "truncated", "tokens": 9},
        {"controller": "progressive", "start": 1, "increment": 1},
        {"controller": "staged", "stages": {0: 10, 5: 20}},
        {"controller": "random", "ratio": 0.1, "seed": 3, "continue": True},
        {"controller": "prune", "whole": 2},
        {"controller": "plateau", "start": 10, "increment": 5, "patience": 2},
        {"controller": "settled", "warmup": 7},
    ],
)
def test_a_recipe_with_any_horizon_survives_a_round_trip_through_yaml(horizon: dict[str, Any]) -> None:
    recipe = Recipe.parse(minimal(horizon=horizon))
    assert reread(recipe) == recipe
    assert reread(recipe).controller() == recipe.controller()


def test_every_run_starts_with_a_new_state_of_the_horizon() -> None:
    recipe = Recipe.parse(minimal(horizon={"controller": "plateau", "start": 10, "increment": 5}))
    tenth = Block(0, 10, rollouts=4, stopped=0, tokens=40, reverse_kl=0.3)
    for step in range(20):
        recipe.controller().observe(Evidence(step, 10, 4, 0, 10.0, (), (), (), (tenth,)))
    assert recipe.controller().decide(20).tokens == 10
    assert isinstance(recipe.horizon, Plateau)
    assert recipe.horizon.state_dict() == recipe.controller().state_dict()


def test_a_recipe_loads_neither_torch_nor_transformers() -> None:
    program = f"""
import sys
import hopd.recipe
hopd.recipe.Recipe.load({str(RECIPES / "quickstart.yaml")!r}).controller()
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    imported = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert imported.strip() == "[]"


def test_a_recipe_made_in_python_equals_the_one_from_yaml() -> None:
    made = Recipe(
        name="small",
        student=ModelSource(model="s"),
        teacher={"model": "t"},
        task={"source": "file", "path": "rows.jsonl"},
        rollout=RolloutSection(prompts=4, full_tokens=100),
        horizon=Truncated(100, ratio=0.1),
        window=First(7),
        objective=TopK(k=4),
        training=TrainingSection(steps=2, learning_rate=1e-4),
    )
    assert made == Recipe.parse(
        minimal(
            task={"source": "file", "path": "rows.jsonl"},
            horizon={"controller": "truncated", "ratio": 0.1},
            window={"kind": "first", "tokens": 7},
            objective={"estimator": "top_k", "k": 4},
        )
    )
    assert made.horizon == Truncated(100, ratio=0.1)
    assert reread(made) == made


def test_a_mistake_in_python_is_the_same_sentence() -> None:
    with pytest.raises(RecipeError, match=r"^unknown key studnt \(did you mean 'student'\?\)$"):
        Recipe(**minimal(studnt=1))
    with pytest.raises(RecipeError, match=r"full length is 4096 tokens, and rollout\.full_tokens is 100"):
        Recipe.parse(minimal(horizon=Truncated(4096, ratio=0.1)))


def test_a_mistake_in_the_horizon_is_reported_together_with_the_others() -> None:
    with pytest.raises(
        RecipeError, match=r"unknown key studnt .*; horizon 'full' has|horizon 'full' has .*; unknown key"
    ):
        Recipe.parse(minimal(**{"studnt": 1, "horizon.tokens": 3}))


WRITTEN_BEFORE = {
    "divergence": "reverse_kl",
    "beta": 0.5,
    "k": 16,
    "tail": "paper",
    "candidates": "student",
    "gamma": 0.0,
    "control_variate": False,
    "importance_cap": None,
}


@pytest.mark.parametrize(
    ("written", "objective"),
    [
        ({"estimator": "full", "divergence": "jsd"}, FullVocabulary("jsd")),
        ({"estimator": "full", "importance_cap": 2.0}, FullVocabulary(importance_cap=2.0)),
        ({"estimator": "top_k", "k": 4}, TopK(4)),
        ({"estimator": "top_k", "importance_cap": 2.0}, TopK(importance_cap=2.0)),
        ({"estimator": "sampled", "gamma": 1.0, "importance_cap": 2.0}, Sampled(1.0, importance_cap=2.0)),
    ],
)
def test_a_recipe_that_an_older_run_wrote_is_read_as_the_same_recipe(
    tmp_path: Path, written: dict[str, Any], objective: object
) -> None:
    old = minimal(output=str(tmp_path), objective=WRITTEN_BEFORE | written)
    recipe = Recipe.parse(old)
    assert recipe.objective == objective
    assert recipe == Recipe.parse(minimal(output=str(tmp_path), objective=written))
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "recipe.yaml").write_text(yaml.safe_dump(old))
    assert RunDirectory(recipe.directory).latest_checkpoint(recipe, resume=True) is None
    other = recipe.with_changes(objective={"estimator": "full", "beta": 0.9})
    with pytest.raises(RecipeError, match=r"objective\.beta was .*, now 0\.9"):
        RunDirectory(recipe.directory).latest_checkpoint(other, resume=True)


def test_the_written_recipe_has_every_default() -> None:
    content = yaml.safe_load(Recipe.parse(minimal()).yaml())
    assert content["rollout"]["temperature"] == 1.0
    assert content["objective"]["divergence"] == "reverse_kl"
    assert content["checkpoint"] == {"every": 50, "keep_last": 2, "keep_best": False}


def test_wsd_decays_in_the_last_fifth_unless_told_otherwise() -> None:
    for changes, decay in (({}, 0.2), ({"training.decay": None}, 0.2), ({"training.decay": 1.0}, 1.0)):
        recipe = Recipe.parse(minimal(**{"training.schedule": "wsd", **changes}))
        assert recipe.training.decay == decay
        assert reread(recipe) == recipe
    assert TrainingSection(steps=2, learning_rate=1e-4).decay is None


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    assert yaml.safe_load("1e-6") == "1e-6"
    assert Recipe.parse(minimal(**{"training.learning_rate": "1e-6"})).training.learning_rate == 1e-6


def test_an_override_replaces_a_value_a_section_or_a_deep_value(tmp_path: Path) -> None:
    path = written(tmp_path / "recipe.yaml")
    recipe = Recipe.load(
        path,
        [
            "seed=5",
            "training.steps=10",
            "training.learning_rate=1e-6",
            "horizon={controller: truncated, ratio: 0.1}",
            "window.kind=first",
            "window.tokens=7",
            "evaluation={task: {source: addition}}",
            "evaluation.task.size=12",
            "student.layers=[0, 1]",
        ],
    )
    assert (recipe.seed, recipe.training.steps, recipe.training.learning_rate) == (5, 10, 1e-6)
    assert recipe.controller() == Truncated(100, ratio=0.1)
    assert recipe.loss_window() == First(7)
    assert recipe.evaluation
    assert isinstance(recipe.evaluation.task, AdditionSource)
    assert recipe.evaluation.task.size == 12
    assert recipe.student.layers == [0, 1]


def test_the_last_of_two_overrides_applies_and_null_removes_a_value(tmp_path: Path) -> None:
    path = written(tmp_path / "recipe.yaml")
    recipe = Recipe.load(path, ["seed=5", "seed=6", "training.steps=null", "training.epochs=2"])
    assert (recipe.seed, recipe.training.steps, recipe.training.epochs) == (6, None, 2)


def test_an_override_of_one_of_two_sections_that_share_an_anchor_does_not_change_the_other(tmp_path: Path) -> None:
    shared = MINIMAL.replace("student: {model: s}", "student: &same {model: s}")
    shared = shared.replace("teacher: {model: t}", "teacher: *same")
    recipe = Recipe.load(written(tmp_path / "recipe.yaml", shared), ["teacher.model=t"])
    assert isinstance(recipe.teacher, ModelSource)
    assert (recipe.student.model, recipe.teacher.model) == ("s", "t")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.steps", r"written key=value, for example training\.steps=10; got 'training\.steps'"),
        ("trainng.steps=3", r"unknown key trainng \(did you mean 'training'\?\)"),
        ("training.stps=3", r"unknown key training\.stps \(did you mean 'steps'\?\)"),
        ("training.steps={", "the value is not YAML"),
        ("training.steps=few", r"training\.steps: input should be a valid integer"),
        ("name.first=x", "name is not a section of the recipe"),
        ("horizon=full", "horizon: input should be a valid dictionary"),
    ],
)
def test_a_wrong_override_is_an_error(tmp_path: Path, override: str, sentence: str) -> None:
    path = written(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match=sentence):
        Recipe.load(path, [override])


def test_changed_sections_are_checked_again() -> None:
    recipe = Recipe.parse(minimal())
    assert recipe.with_changes(horizon={"controller": "truncated", "tokens": 9}).controller() == Truncated(
        100, tokens=9
    )
    assert recipe.controller() == Full(100)
    with pytest.raises(RecipeError, match="at most the full length 100"):
        recipe.with_changes(horizon={"controller": "truncated", "tokens": 101})


def test_a_file_that_is_not_a_recipe_is_an_error_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe at .*missing\.yaml \(looked in "):
        Recipe.load(tmp_path / "missing.yaml")
    with pytest.raises(RecipeError, match=r"broken\.yaml is not YAML"):
        Recipe.load(written(tmp_path / "broken.yaml", "name: [\n"))
    with pytest.raises(RecipeError, match=r"list\.yaml must hold a mapping with name, student, .*got list"):
        Recipe.load(written(tmp_path / "list.yaml", "- name\n"))
    with pytest.raises(RecipeError, match=r"empty\.yaml must hold a mapping .*got NoneType"):
        Recipe.load(written(tmp_path / "empty.yaml", ""))
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin\.yaml is not YAML"):
        Recipe.load(tmp_path / "latin.yaml")
