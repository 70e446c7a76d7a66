"""Holds the smallest recipe, as YAML and as a mapping that tests change."""

from pathlib import Path
from typing import Any

import yaml

from hopd.recipe import Recipe

MINIMAL = """
name: small
student: {model: s}
teacher: {model: t}
task: {source: addition}
rollout: {prompts: 4, full_tokens: 100}
horizon: {controller: full}
training: {steps: 2, learning_rate: 1e-4}
"""


def minimal(**changes: Any) -> dict[str, Any]:
    """The smallest recipe, with values put at dotted places: `minimal(**{"training.steps": 3})`."""
    content: dict[str, Any] = yaml.safe_load(MINIMAL)
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
