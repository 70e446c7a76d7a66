import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import hopd
from hopd.errors import RecipeError
from hopd.horizon import First, Full, Progressive, Truncated, Whole
from hopd.objective import Full as FullVocabulary
from hopd.objective import Sampled, TopK
from hopd.recipe import FileSource, ModelSource, Recipe, RolloutSection, TrainingSection
from hopd.run.directory import RunDirectory

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
PAPER = [path for path in RECIPES if path.name.startswith("paper-")]

MINIMAL = """
name: small
student: {model: s}
teacher: {model: t}
task: {source: addition}
rollout: {prompts: 4, full_tokens: 100}
horizon: {controller: full}
training: {steps: 2, learning_rate: 1e-4}
"""

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
horizon: {controller: progressive, start: 10, increment: 3, every: 2}
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


def minimal(**changes: Any) -> dict[str, Any]:
    """The smallest recipe, with values put at dotted places: `minimal(**{"training.steps": 3})`."""
    content = yaml.safe_load(MINIMAL)
    for place, value in changes.items():
        section = content
        *sections, key = place.split(".")
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    return content


def written(path: Path, text: str = MINIMAL) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def reread(recipe: Recipe) -> Recipe:
    return Recipe.parse(yaml.safe_load(recipe.yaml()))


def test_the_smallest_recipe_has_the_documented_defaults() -> None:
    recipe = Recipe.parse(minimal())
    assert recipe.directory == Path("runs/small")
    assert recipe.controller() == Full(100)
    assert recipe.loss_window() == Whole()
    assert recipe.objective == FullVocabulary()
    assert recipe.evaluation is None


@pytest.mark.parametrize("text", [MINIMAL, COMPLETE])
def test_a_recipe_comes_back_from_its_own_yaml(text: str) -> None:
    recipe = Recipe.parse(yaml.safe_load(text))
    assert reread(recipe) == recipe


@pytest.mark.parametrize(
    "horizon",
    [
        {"controller": "full"},
        {"controller": "truncated", "ratio": 0.025},
        {"controller": "truncated", "tokens": 9},
        {"controller": "progressive", "start": 1, "increment": 1},
        {"controller": "staged", "stages": {0: 10, 5: 20}},
    ],
)
def test_a_recipe_with_any_horizon_comes_back_from_its_own_yaml(horizon: dict[str, Any]) -> None:
    recipe = Recipe.parse(minimal(horizon=horizon))
    assert reread(recipe) == recipe
    assert reread(recipe).controller() == recipe.controller()


def test_a_recipe_loads_neither_torch_nor_transformers() -> None:
    program = f"""
import sys
import hopd.recipe
hopd.recipe.Recipe.load({str(next(p for p in RECIPES if p.stem == "quickstart"))!r}).controller()
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    imported = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert imported.strip() == "[]"


def test_a_recipe_made_in_python_is_the_one_that_yaml_makes() -> None:
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


def test_a_mistake_in_the_horizon_is_told_together_with_the_others() -> None:
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
        ({"estimator": "top_k", "k": 4}, TopK(4)),
        ({"estimator": "sampled", "gamma": 1.0}, Sampled(1.0)),
    ],
)
def test_a_recipe_that_an_older_run_wrote_out_is_the_same_one(
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


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    assert yaml.safe_load("1e-6") == "1e-6"
    assert Recipe.parse(minimal(**{"training.learning_rate": "1e-6"})).training.learning_rate == 1e-6


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
def test_the_nearest_name_is_one_that_this_source_takes(key: str) -> None:
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


def test_several_mistakes_are_told_together() -> None:
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
        ("window", {"kind": "frist", "tokens": 3}, r"did you mean 'first'"),
        ("window", {"kind": "first", "tokens": 0}, "whole number of at least 1, got 0"),
        ("objective", {"estimator": "top_k", "k": 0}, "k must be at least 1, got 0"),
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
        ("training.mini_batch", 3, r"mini_batch must divide rollout\.prompts = 4, got 3"),
    ],
)
def test_what_does_not_fit_together_is_an_error_before_anything_is_loaded(
    place: str, value: object, sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        Recipe.parse(minimal(**{place: value}))


@pytest.mark.parametrize("source", ["additon", None, 3])
def test_an_unknown_source_is_an_error_that_lists_the_known_ones(source: object) -> None:
    with pytest.raises(
        RecipeError, match=r"task\.source must be one of addition, .*file, reasoning_gym, or my\.module:Name"
    ):
        Recipe.parse(minimal(task={"source": source}))


def test_the_error_says_which_recipe_is_meant() -> None:
    with pytest.raises(RecipeError, match=r"^mine\.yaml: "):
        Recipe.parse(minimal(studnt=1), where="mine.yaml")


@pytest.mark.parametrize("changes", [{"training.epochs": 2}, {"training.steps": None}])
def test_a_run_has_exactly_one_of_steps_and_epochs(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="either steps or epochs: write steps: 200, or epochs: 2"):
        Recipe.parse(minimal(**changes))


@pytest.mark.parametrize("changes", [{"teachers": {"large": {"model": "l"}}}, {"teacher": None}])
def test_a_run_has_exactly_one_of_a_teacher_and_teachers_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="either one teacher, or teachers by name"):
        Recipe.parse(minimal(**changes))


@pytest.mark.parametrize("task", [{"source": "addition"}, {"source": "file", "path": "rows.jsonl"}])
def test_several_teachers_need_a_column_that_says_which(task: dict[str, Any]) -> None:
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
    assert recipe.evaluation.task.size == 12
    assert recipe.student.layers == [0, 1]


def test_the_last_of_two_overrides_holds_and_null_takes_a_value_away(tmp_path: Path) -> None:
    path = written(tmp_path / "recipe.yaml")
    recipe = Recipe.load(path, ["seed=5", "seed=6", "training.steps=null", "training.epochs=2"])
    assert (recipe.seed, recipe.training.steps, recipe.training.epochs) == (6, None, 2)


def test_an_override_of_one_of_two_sections_that_share_an_anchor_leaves_the_other(tmp_path: Path) -> None:
    shared = MINIMAL.replace("student: {model: s}", "student: &same {model: s}")
    shared = shared.replace("teacher: {model: t}", "teacher: *same")
    recipe = Recipe.load(written(tmp_path / "recipe.yaml", shared), ["teacher.model=t"])
    assert recipe.teacher
    assert (recipe.student.model, recipe.teacher.model) == ("s", "t")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.steps", r"written key=value, for example training\.steps=10; got 'training\.steps'"),
        ("trainng.steps=3", r"unknown key trainng \(did you mean 'training'\?\)"),
        ("training.stps=3", r"unknown key training\.stps \(did you mean 'steps'\?\)"),
        ("training.steps={", "the value is not YAML"),
        ("training.steps=few", r"training\.steps: input should be a valid integer"),
        ("name.first=x", "name is no section of the recipe"),
        ("horizon=full", "horizon: input should be a valid dictionary"),
    ],
)
def test_an_override_that_cannot_be_meant_is_an_error(tmp_path: Path, override: str, sentence: str) -> None:
    path = written(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match=sentence):
        Recipe.load(path, [override])


def test_changed_sections_are_checked_anew() -> None:
    recipe = Recipe.parse(minimal())
    assert recipe.with_changes(horizon={"controller": "truncated", "tokens": 9}).controller() == Truncated(
        100, tokens=9
    )
    assert recipe.controller() == Full(100)
    with pytest.raises(RecipeError, match="at most the full length 100"):
        recipe.with_changes(horizon={"controller": "truncated", "tokens": 101})


def test_a_file_that_is_no_recipe_is_an_error_for_a_person(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_and_comes_back_from_its_own_yaml(path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.name == path.stem
    assert reread(recipe) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_horizons_that_a_shipped_recipe_offers_in_comments_can_be_taken(path: Path) -> None:
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
    assert Recipe.load(packaged) == Recipe.load(shown)


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
