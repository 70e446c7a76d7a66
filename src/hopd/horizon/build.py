"""Controllers and windows from the plain mapping that stands in a recipe, with errors for people."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hopd.errors import RecipeError, nearest
from hopd.horizon.controller import Controller
from hopd.horizon.schedule import Full, Progressive, Staged, Truncated
from hopd.horizon.window import First, Last, Random, Segment, Whole, Window

CONTROLLERS = {"full": Full, "truncated": Truncated, "progressive": Progressive, "staged": Staged}
WINDOWS = {"whole": Whole, "first": First, "last": Last, "random": Random, "segment": Segment}


def build(spec: Mapping[str, Any], full_tokens: int) -> Controller:
    """`{"controller": "truncated", "ratio": 0.1}` → `Truncated(full_tokens, ratio=0.1)`.

    Raises `RecipeError` for an unknown controller or option, and for values out of range.
    """
    return _construct("horizon", "controller", CONTROLLERS, spec, full_tokens=full_tokens)


def build_window(spec: Mapping[str, Any]) -> Window:
    """`{"kind": "first", "tokens": 100}` → `First(100)`. Raises `RecipeError` like `build`."""
    return _construct("window", "kind", WINDOWS, spec)


def _construct(what: str, tag: str, classes: Mapping[str, Any], spec: Mapping[str, Any], **given: Any) -> Any:
    options = dict(spec)
    name = options.pop(tag, None)
    if not isinstance(name, str) or name not in classes:
        raise RecipeError(
            f"{what}.{tag} must be one of {', '.join(classes)}; got {name!r}{nearest(str(name), classes)}"
        )
    fields = [f for f in dataclasses.fields(classes[name]) if f.name not in given]
    known = [f.name for f in fields]
    for option in options:
        if option not in known:
            raise RecipeError(
                f"{what} '{name}' has no option {option!r}{nearest(str(option), known)}; "
                f"it takes {', '.join(known) or 'none'}"
            )
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in options:
            raise RecipeError(f"{what} '{name}' needs {field.name}")
    try:
        return classes[name](**given, **options)
    except TypeError as error:  # a value that cannot be compared with a number
        raise RecipeError(f"{what} '{name}' cannot be made of {options}: a value has the wrong type") from error
