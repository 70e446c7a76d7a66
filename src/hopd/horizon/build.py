"""Makes controllers and windows from the mappings in a recipe, with readable errors, and writes them back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hopd import plugin
from hopd.horizon.adaptive import Adaptive
from hopd.horizon.controller import Controller
from hopd.horizon.neighbours import Plateau, Prune, Settled
from hopd.horizon.schedule import Full, Progressive, RandomHorizon, Staged, Truncated
from hopd.horizon.window import First, Last, Random, Segment, Whole, Window

BuiltIn = Full | Truncated | Progressive | Staged | Adaptive | RandomHorizon | Prune | Plateau | Settled
CONTROLLERS = {
    "full": Full,
    "truncated": Truncated,
    "progressive": Progressive,
    "staged": Staged,
    "adaptive": Adaptive,
    "random": RandomHorizon,
    "prune": Prune,
    "plateau": Plateau,
    "settled": Settled,
}
GIVEN = ("full_tokens", "per_step")  # what a controller may have as arguments, and a recipe says elsewhere
WINDOWS = {"whole": Whole, "first": First, "last": Last, "random": Random, "segment": Segment}


def build(spec: Mapping[str, Any], full_tokens: int, per_step: int | None = None) -> Controller:
    """Makes a controller: `{"controller": "truncated", "ratio": 0.1}` becomes `Truncated(full_tokens, ratio=0.1)`.

    `{"controller": "my.module:Plateau", …}` makes a class of your own from its options. It receives `full_tokens` (the
    longest rollout, in tokens) and `per_step` (the recipe's rollouts in a step) if its constructor has parameters of
    these names. Raises `RecipeError` for an unknown controller or option, and for values out of range.
    """
    needs = ("full_tokens", "decide", "observe", "state_dict", "load_state_dict")
    given = {"full_tokens": full_tokens} | ({} if per_step is None else {"per_step": per_step})
    controller: Controller = plugin.build("horizon", "controller", CONTROLLERS, spec, needs, **given)
    return controller


def build_window(spec: Mapping[str, Any]) -> Window:
    """Makes a window: `{"kind": "first", "tokens": 100}` becomes `First(100)`.

    `{"kind": "my.module:Name", …}` makes a class of your own. Raises `RecipeError` like `build`.
    """
    window: Window = plugin.build("window", "kind", WINDOWS, spec, needs=("span",))
    return window


def describe(controller: BuiltIn) -> dict[str, Any]:
    """Returns the mapping from which `build` makes the controller, with every option and without what is `GIVEN`."""
    options = _described("controller", CONTROLLERS, controller)
    return {plugin.OPTIONS.get(key, key): value for key, value in options if key not in GIVEN}


def describe_window(window: Whole | First | Last | Random | Segment) -> dict[str, Any]:
    """Returns the mapping from which `build_window` makes the window."""
    return dict(_described("kind", WINDOWS, window))


def _described(tag: str, classes: Mapping[str, Any], made: Any) -> list[tuple[str, Any]]:
    name = next(name for name, kind in classes.items() if kind is type(made))
    return [(tag, name), *((f.name, getattr(made, f.name)) for f in dataclasses.fields(made) if f.init)]
