"""Plug-ins, which a recipe names as `my.module:Name`."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hopd import plugin
from hopd.assembly.prompts import build_task
from hopd.errors import RecipeError
from hopd.recipe import Recipe, TaskPlugin

SOKOBAN = """
from dataclasses import dataclass
from hopd.tasks import Problem

@dataclass
class Sokoban:
    size: int
    boxes: int = 1

    @property
    def problems(self):
        return [Problem(i, f"push {self.boxes}", str(i)) for i in range(self.size)]

    def score(self, problem, response):
        return float(response == problem.answer)

class Silent:
    pass

LEVELS = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Writes a module into the current directory and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name: str = "own_game", text: str = SOKOBAN) -> str:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        return name

    yield write
    sys.modules.pop("own_game", None)


def recipe(**task: Any) -> Recipe:
    content = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    return Recipe.parse(content | {"task": task})


def test_a_module_of_the_current_directory_is_found(module: Callable[..., str]) -> None:
    assert plugin.load(f"{module()}:LEVELS", "task.source") == 3


def test_a_module_of_the_current_directory_shadows_no_installed_one(module: Callable[..., str]) -> None:
    module("json", "loads = None")
    plugin.load(f"{module()}:LEVELS", "task.source")
    assert sys.path[-1] == str(Path.cwd())


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("own_game:", r"task\.source 'own_game:' is no name of a plug-in; write my\.module:Name"),
        (":Sokoban", "is no name of a plug-in"),
        ("own game:Sokoban", "is no name of a plug-in"),
        ("own_game:Sokoban:size", "is no name of a plug-in"),
        ("own_game:Sokobann", r"own_game \(.*own_game\.py\) has no 'Sokobann' \(did you mean 'Sokoban'\?\)"),
        ("no_such_game:Sokoban", "no module no_such_game in Python's path, nor in the current directory .*; run hopd"),
        ("own_game.levels:Sokoban", r"no module own_game\.levels in"),
    ],
)
def test_a_name_that_cannot_be_resolved_is_an_error_with_the_reason(
    module: Callable[..., str], name: str, sentence: str
) -> None:
    module()
    with pytest.raises(RecipeError, match=sentence):
        plugin.load(name, "task.source")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import no_such_package", "own_game imports no_such_package, which is not installed"),
        ("from json import nothing", "own_game cannot be imported: cannot import name 'nothing'"),
        ("class :", r"own_game cannot be imported: .*\(own_game\.py, line 1\)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_an_error_with_the_cause(
    module: Callable[..., str], text: str, sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        plugin.load(f"{module('own_game', text)}:Sokoban", "task.source")


def test_a_class_receives_the_arguments_that_it_has_parameters_for() -> None:
    def make(size: int, full_tokens: int) -> tuple[int, int]:
        return size, full_tokens

    assert plugin.construct(make, {"size": 2}, "horizon 'x'", full_tokens=9, student=None) == (2, 9)
    with pytest.raises(RecipeError, match="horizon 'x' has no option 'full_tokens'; it takes size"):
        plugin.construct(make, {"size": 2, "full_tokens": 8}, "horizon 'x'", full_tokens=9)


def test_a_class_with_keyword_arguments_takes_any_option() -> None:
    assert plugin.construct(lambda **options: options, {"a": 1}, "task 'x'") == {"a": 1}


def test_a_custom_task_is_built_from_its_options(module: Callable[..., str]) -> None:
    source = recipe(source=f"{module()}:Sokoban", size=4, chat=True).task
    task: Any = build_task(source)
    assert (task.size, task.boxes, source.chat) == (4, 1, True)
    assert task.score(task.problems[3], "3") == 1


def test_a_recipe_with_a_custom_task_survives_a_round_trip_through_yaml(module: Callable[..., str]) -> None:
    written = recipe(source=f"{module()}:Sokoban", size=4, boxes=2)
    assert isinstance(written.task, TaskPlugin)
    assert Recipe.parse(yaml.safe_load(written.yaml())) == written
    assert written.with_changes(seed=3).task == written.task


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"size": 4, "boxs": 2},
            r"task 'own_game:Sokoban' has no option 'boxs' \(did you mean 'boxes'\?\); it takes size",
        ),
        ({}, "task 'own_game:Sokoban' needs size"),
        (
            {"source": "own_game:LEVELS"},
            r"task\.source 'own_game:LEVELS' is no class but int; name a class of own_game",
        ),
        ({"source": "own_gam:Sokoban"}, r"task\.source 'own_gam:Sokoban': there is no module own_gam"),
    ],
)
def test_a_custom_task_is_checked_when_the_recipe_is_read(
    module: Callable[..., str], options: dict[str, Any], sentence: str
) -> None:
    module()
    with pytest.raises(RecipeError, match=sentence):
        recipe(**{"source": "own_game:Sokoban"} | options)


def test_a_custom_task_without_problems_is_an_error(module: Callable[..., str]) -> None:
    with pytest.raises(RecipeError, match="has no problems and no score; a class in its place needs problems, score"):
        build_task(recipe(source=f"{module()}:Silent").task)


def test_the_command_finds_a_task_in_the_current_directory(module: Callable[..., str], tmp_path: Path) -> None:
    recipe_file = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
    task = f"--set=task={{source: {module()}:Sokoban, sise: 40}}"
    command = [sys.executable, "-P", "-m", "hopd", "check", str(recipe_file), task]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2
    assert "task 'own_game:Sokoban' has no option 'sise' (did you mean 'size'?)" in ended.stderr


CHECK = "def right(response, answer):\n    return 1.0\n\ndef alone(response):\n    return 1.0\n\nWORD = 'right'\n"


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Writes a recipe and the module `own_rewards` into one directory, where nobody works, and returns the recipe."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name: str, text: str = CHECK, **changes: Any) -> Path:
        place = tmp_path / name
        place.mkdir()
        (place / "own_rewards.py").write_text(text, encoding="utf-8")
        content = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "quickstart.yaml").read_text("utf-8"))
        content |= {"task": {"source": "file", "path": "no.jsonl", "check": "own_rewards:right"}} | changes
        (place / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return place / "recipe.yaml"

    yield write
    sys.modules.pop("own_rewards", None)


def test_a_module_beside_the_recipe_is_found_before_any_model_is_loaded(beside: Callable[..., Path]) -> None:
    path = beside("one", student={"model": "no-such-model"})
    assert Recipe.load(path).task.check == "own_rewards:right"  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match=r"check 'own_rewards:rigth': own_rewards .*did you mean 'right'"):
        Recipe.load(path, ["task.check=own_rewards:rigth"])
    with pytest.raises(RecipeError, match=r"check must be one of math, exact, or module:function; got 'maths'"):
        Recipe.load(path, ["task.check=maths"])


def test_a_module_that_lies_in_two_places_is_named(beside: Callable[..., Path]) -> None:
    Recipe.load(beside("one"))
    with pytest.raises(RecipeError, match=r"task\.check 'own_rewards:right': the module own_rewards is .*/two/.*/one/"):
        Recipe.load(beside("two"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("alone", r"is called with response, answer, by position, and takes \(response\)"),
        ("WORD", "is no function but str; name one that takes response, answer"),
    ],
)
def test_a_check_that_cannot_be_called_is_an_error(beside: Callable[..., Path], name: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        Recipe.load(beside("one"), [f"task.check=own_rewards:{name}"])


@pytest.mark.parametrize("text", ["1 / 0", "raise SystemExit('usage: …')", "x = undefined"])
def test_a_module_that_raises_anything_is_an_error_with_the_line(beside: Callable[..., Path], text: str) -> None:
    with pytest.raises(RecipeError, match=r"own_rewards cannot be imported: .*\(own_rewards\.py, line 1\)"):
        Recipe.load(beside("one", text))


def test_a_class_that_raises_anything_is_an_error_with_the_line(beside: Callable[..., Path]) -> None:
    text = "class Bad:\n    def __init__(self):\n        raise KeyError('size')\n"
    with pytest.raises(RecipeError, match=r"horizon 'own_rewards:Bad' cannot be made of {}: KeyError: 'size' \(own_re"):
        Recipe.load(beside("one", text, horizon={"controller": "own_rewards:Bad"}, task={"source": "addition"}))


def test_check_without_weights_imports_no_code_and_lists_it(beside: Callable[..., Path]) -> None:
    own = {
        "horizon": {"controller": "own_rewards:Grows", "by": 2},
        "window": {"kind": "own_rewards:Middle"},
        "objective": {"estimator": "own_rewards:Alpha"},
        "teacher": {"source": "own_rewards:Mine"},
    }
    path = beside("one", "open('was_imported', 'w')", **own)
    command = [sys.executable, "-W", "error", "-m", "hopd", "check", "--without-weights", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=path.parent)
    assert ended.returncode == 0, ended.stderr
    assert not (path.parent / "was_imported").exists()
    for name, key in [
        ("right", "task.check"),
        ("Grows", "horizon.controller"),
        ("Middle", "window.kind"),
        ("Alpha", "objective.estimator"),
        ("Mine", "teacher.source"),
    ]:
        assert f"a run imports own_rewards:{name} ({key}); not checked here" in ended.stdout
