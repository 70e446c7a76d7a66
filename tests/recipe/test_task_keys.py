"""The keys of a task: which are read, and what a mistake in them says."""

from pathlib import Path
from typing import Any

import pytest

from hopd.errors import RecipeError
from hopd.recipe import FileSource, Recipe
from tests.recipe.content import minimal, reread

FILE = {"source": "file", "path": "p.jsonl"}


@pytest.mark.parametrize("place", ["task", "evaluation.task"])
def test_the_keys_of_a_file_are_read_and_written(place: str) -> None:
    keys: dict[str, Any] = {"chat": True, "template": {"enable_thinking": False}, "system": "Be brief."}
    keys |= {"unique": True, "filter": "builtins:bool", "config": "main", "path": "owner/set"}
    recipe = Recipe.parse(minimal(**{place: FILE | keys}))
    source = recipe.task if place == "task" else recipe.evaluation and recipe.evaluation.task
    assert isinstance(source, FileSource)
    assert source.model_dump(include=set(keys)) == keys
    assert reread(recipe) == recipe


@pytest.mark.parametrize("place", ["task", "evaluation.task"])
@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"chat": {"enable_thinking": False}}, r"write chat: true, and template: \{enable_thinking: false\}"),
        ({"template": {"a": 1}}, r"task\.template is for the chat template; write chat: true beside it"),
        ({"system": "Be brief."}, r"task\.system is for the chat template; write chat: true beside it"),
        ({"chat": True, "template": {"tokenize": True}}, r"task\.template\.tokenize is set by hopd"),
        ({"chat": True, "template": "off"}, r"task\.template: input should be a valid dictionary, got 'off'"),
        ({"chat": True, "system": 3}, r"task\.system: input should be a valid string, got 3"),
        ({"config": "main"}, r"task\.config names a part of a data set, and p\.jsonl is one file; remove config"),
        ({"filter": "keep"}, r"task\.filter is a function of your own, module:function; got 'keep'"),
        ({"unique": "often"}, r"task\.unique: input should be a valid boolean.*got 'often'"),
        ({"uniqe": True}, r"unknown key .*task\.uniqe \(did you mean 'unique'\?\)"),
    ],
)
def test_a_mistake_in_a_key_says_what_to_write(place: str, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        Recipe.parse(minimal(**{place: FILE | keys}))


def test_the_template_of_other_built_in_tasks_has_options_too() -> None:
    task = {"source": "reasoning_gym", "name": "gcd", "size": 3, "chat": True, "template": {"a": 1}, "system": "b"}
    assert Recipe.parse(minimal(task=task)).task.chat


def test_a_recipe_that_is_a_link_to_nothing_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").symlink_to("../gone/mine.yaml")
    with pytest.raises(RecipeError, match=r"mine\.yaml is a link to \.\./gone/mine\.yaml, which does not exist; copy"):
        Recipe.load(tmp_path / "mine.yaml")
