"""Controllers and windows from the plain mapping that stands in a recipe, with errors for people."""

from collections.abc import Mapping
from typing import Any

from hopd import plugin
from hopd.horizon.controller import Controller
from hopd.horizon.schedule import Full, Progressive, Staged, Truncated
from hopd.horizon.window import First, Last, Random, Segment, Whole, Window

CONTROLLERS = {"full": Full, "truncated": Truncated, "progressive": Progressive, "staged": Staged}
WINDOWS = {"whole": Whole, "first": First, "last": Last, "random": Random, "segment": Segment}


def build(spec: Mapping[str, Any], full_tokens: int) -> Controller:
    """`{"controller": "truncated", "ratio": 0.1}` → `Truncated(full_tokens, ratio=0.1)`.

    Raises `RecipeError` for an unknown controller or option, and for values out of range.
    """
    needs = ("full_tokens", "decide", "observe", "state_dict", "load_state_dict")
    return plugin.build("horizon", "controller", CONTROLLERS, spec, needs, full_tokens=full_tokens)


def build_window(spec: Mapping[str, Any]) -> Window:
    """`{"kind": "first", "tokens": 100}` → `First(100)`. Raises `RecipeError` like `build`."""
    return plugin.build("window", "kind", WINDOWS, spec, needs=("span",))
