"""Applies settings of the command line, such as `training.steps=10`, to a recipe before it is checked."""

from typing import Any

from hopd.errors import RecipeError, shown
from hopd.recipe.document import read_yaml


def override(content: dict[str, Any], text: str) -> None:
    """Sets the value of `text`, written key.key=value, in `content`.

    Raises `RecipeError` if `text` has another form, or if a key on the way is not a section.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"an override is written key=value, for example training.steps=10; got {shown(text)}")
    *sections, key = path.strip().split(".")
    for section in sections:
        inner = content.get(section) or {}
        if not isinstance(inner, dict):
            raise RecipeError(f"override {shown(text)}: {shown(section, quoted=False)} is not a section of the recipe")
        content[section] = content = dict(inner)  # a copy: an anchor may have put the same section elsewhere
    content[key] = read_yaml(value, f"override {shown(text)}: the value")
