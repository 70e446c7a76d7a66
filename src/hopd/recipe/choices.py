"""Reads and writes the horizon, the loss window and the objective of a recipe, whether built-in or a plug-in."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, Tag, ValidationInfo
from pydantic_core import PydanticCustomError

from hopd import horizon as horizons
from hopd import objective as objectives
from hopd.errors import RecipeError
from hopd.plugin import Plugin
from hopd.recipe.section import kind_named_by, may_import
from hopd.recipe.sentences import as_pydantic


def _read_horizon(value: Any, info: ValidationInfo) -> Any:
    rollout = info.data.get("rollout")
    if rollout is None:  # the rollout section is reported by itself, and without it the full length is unknown
        return value
    if not isinstance(value, horizons.BuiltIn):
        return _read(
            value, "controller", lambda spec: horizons.build(spec, rollout.full_tokens, rollout.per_step), info
        )
    if value.full_tokens != rollout.full_tokens:
        raise as_pydantic(
            RecipeError(
                f"the horizon's full length is {value.full_tokens} tokens, and rollout.full_tokens is "
                f"{rollout.full_tokens}; both mean the same length, so write the same number"
            )
        )
    return value


def _read_window(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, horizons.Whole | horizons.First | horizons.Last | horizons.Random | horizons.Segment):
        return value
    return _read(value, "kind", horizons.build_window, info)


def _read(value: Any, tag: str, build: Callable[[Mapping[str, Any]], Any], info: ValidationInfo) -> Any:
    """Builds the object that the mapping describes.

    A plug-in is built as well, so that its errors show, but the recipe keeps its name and options: the object may have
    a state, and every run starts with a new one.
    """
    if isinstance(value, Plugin):
        value = value.spec(tag)
    if not isinstance(value, Mapping):
        raise PydanticCustomError("dict_type", f"Input should be a valid dictionary, with {tag}")
    own = Plugin.of(value, tag)
    if own and not may_import(info):
        return own
    try:
        made = build(value)
    except RecipeError as error:
        raise as_pydantic(error) from error
    return own or made


def _read_own(value: Any, info: ValidationInfo) -> objectives.Custom:
    if isinstance(value, objectives.Custom):
        return value
    options = {key: option for key, option in value.items() if key not in ("estimator", "stop")}
    return objectives.Custom(value["estimator"], options, value.get("stop", "token"), may_import(info))


_OPTIONS = {
    "sampled": ("gamma", "control_variate", "importance_cap"),
    "top_k": ("k", "tail", "candidates", "importance_cap"),
    "full": ("divergence", "beta", "importance_cap"),
}


def _drop_other_estimators(content: Any) -> Any:
    """Accepts the recipe.yaml of early 0.1.0 runs too, which lists every estimator's options: keeps only its own."""
    every = {"estimator"}.union(*_OPTIONS.values())
    if not isinstance(content, Mapping) or set(content) != every:
        return content
    kept = ("estimator", *_OPTIONS.get(str(content["estimator"]), every))
    return {key: value for key, value in content.items() if key in kept}


def _write_horizon(value: Any) -> dict[str, Any]:
    return value.spec("controller") if isinstance(value, Plugin) else horizons.describe(value)


def _write_window(value: Any) -> dict[str, Any]:
    return value.spec("kind") if isinstance(value, Plugin) else horizons.describe_window(value)


def _write_own(value: objectives.Custom) -> dict[str, Any]:
    stop = {} if value.stop == "token" else {"stop": value.stop}
    return {"estimator": value.estimator, **value.options, **stop}


Horizon = Annotated[
    horizons.BuiltIn | Plugin,
    PlainValidator(_read_horizon),
    PlainSerializer(_write_horizon),
]
Window = Annotated[
    horizons.Whole | horizons.First | horizons.Last | horizons.Random | horizons.Segment | Plugin,
    PlainValidator(_read_window),
    PlainSerializer(_write_window),
]
Objective = Annotated[
    Annotated[objectives.Sampled, Tag("<estimator sampled>")]
    | Annotated[objectives.TopK, Tag("<estimator top_k>")]
    | Annotated[objectives.Full, Tag("<estimator full>")]
    | Annotated[
        objectives.Custom,
        PlainValidator(_read_own),
        PlainSerializer(_write_own),
        Tag("<estimator plug-in>"),
    ],
    kind_named_by("estimator", tuple(_OPTIONS), default="full"),
    BeforeValidator(_drop_other_estimators),
]
