"""Finds the code of a person's own that a recipe names, without importing it."""

from collections.abc import Iterator, Mapping
from typing import Any

from hopd.plugin import is_plugin

KEYS = ("controller", "kind", "estimator", "source", "check", "filter")  # those that may name code, module:Name


def named_code(content: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields key and name of each `module:Name` in a recipe's content."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            place = f"{path}.{key}".lstrip(".")
            if key in KEYS and is_plugin(value):
                yield place, value
            else:
                yield from named_code(value, place)
