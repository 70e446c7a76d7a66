"""Applies settings of the command line, such as `training.steps=10`, to a recipe before it is checked."""

from typing import Any

import yaml

from hopd.errors import RecipeError


def override(content: dict[str, Any], text: str) -> None:
    """Sets the value of `text`, written key.key=value, in `content`.

    Raises `RecipeError` if `text` has another form, or if a key on the way is not a section.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"an override is written key=value, for example training.steps=10; got {text!r}")
    *sections, key = path.strip().split(".")
    for section in sections:
        inner = content.get(section) or {}
        if not isinstance(inner, dict):
            raise RecipeError(f"override {text!r}: {section} is not a section of the recipe")
        content[section] = content = dict(inner)  # a copy: an anchor may have put the same section elsewhere
    try:
        content[key] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {text!r}: the value is not YAML") from error
