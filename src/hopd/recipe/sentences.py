"""Turns pydantic's errors into sentences for a person, one for each mistake in a recipe."""

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from hopd import plugin
from hopd.errors import RecipeError, nearest, shown
from hopd.recipe.section import UNKNOWN_KIND

MUCH = 300  # characters, of several mistakes in one sentence
SENTENCE = "sentence"  # the type of an error whose message is a whole sentence


def as_pydantic(error: RecipeError) -> PydanticCustomError:
    """Returns an error that pydantic reports together with the other mistakes of the recipe."""
    return PydanticCustomError(SENTENCE, "{sentence}", {"sentence": str(error)})


def sentences(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """Yields a sentence for each mistake, with its place in the recipe `model` and, for a key, the nearest name."""
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"] if not _is_tag(part)) or "the recipe"
        path = shown(place, quoted=False)
        match problem["type"]:
            case "extra_forbidden" | "unexpected_keyword_argument":
                yield f"unknown key {path}{_hint(model, problem['loc'])}"
            case "missing":
                yield f"{path} is missing"
            case "sentence":
                yield problem["msg"]
            case kind if kind == UNKNOWN_KIND:
                yield _unknown_kind(path, problem)
            case _:
                message = problem["msg"][0].lower() + problem["msg"][1:]
                yield f"{path}: {message}, got {shown(problem['input'])}"


def joined(mistakes: Iterable[str]) -> str:
    """Returns sentences as one, and of many only the first ones and how many more there are."""
    first, *others = mistakes
    while others and len(first) + len(others[0]) < MUCH:
        first += f"; {others.pop(0)}"
    return f"{first}; and {len(others)} more" if others else first


def _unknown_kind(path: str, problem: ErrorDetails) -> str:
    content, key, known = problem["input"], problem["ctx"]["key"], problem["ctx"]["known"].split()
    if not isinstance(content, Mapping):
        return f"{path}: input should be a mapping such as {{{key}: {known[0]}, …}}, got {shown(content)}"
    return f"{path}.{key} {plugin.must_be(content.get(key), known, own=bool(problem['ctx']['plugins']))}"


class _Arm(NamedTuple):
    """Pairs a class that may hold a section's keys with its tag, where the section is a union."""

    tag: str | None
    section: type


def _hint(model: type[BaseModel], loc: Sequence[int | str]) -> str:
    """Suggests the nearest key that the section takes, or the kinds of section that take this very key."""
    *places, key = loc
    arms, others = [_Arm(None, model)], list[_Arm]()
    for part in places:
        if _is_tag(part):
            arms, others = [arm for arm in arms if arm.tag == part], arms
        elif inner := [_fields(arm.section)[part] for arm in arms if part in _fields(arm.section)]:
            arms, others = [arm for annotation in inner for arm in _arms(annotation)], []
    if owners := [arm.tag for arm in others if arm.tag and " " in arm.tag and key in _fields(arm.section)]:
        kinds = [owner.strip("<>").split() for owner in owners]
        (kind, mine), names = str(arms[0].tag).strip("<>").split(), [name for _, name in kinds]
        return f": {key} belongs to {kind}: {' or '.join(names)}, not to {mine!r}; write {kind}: {names[0]}"
    return nearest(str(key), [name for arm in arms for name in _fields(arm.section)])


def _arms(annotation: Any, tag: str | None = None) -> Iterator[_Arm]:
    if typing.get_origin(annotation) is Annotated:
        annotation, *metadata = typing.get_args(annotation)
        tag = next((str(each.tag) for each in metadata if isinstance(each, Tag)), tag)
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)):
        yield _Arm(tag, annotation)
    for argument in typing.get_args(annotation):
        yield from _arms(argument, tag)


def _fields(section: type) -> Mapping[Any, Any]:
    hints = typing.get_type_hints(section, include_extras=True)
    return {name: hint for name, hint in hints.items() if typing.get_origin(hint) is not ClassVar}


def _is_tag(part: int | str) -> bool:
    return str(part).startswith("<")
