"""Reads YAML as a recipe holds it: plain values, every key once, numbers and nesting of a size that makes sense."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import yaml

from hopd.errors import RecipeError, shown

DEPTH = 32  # sections inside sections
VALUES = 100_000  # values in all; aliases of aliases make more of a few lines
PATHS = ("name", "output", "path", "model", "directory")  # keys that may name files
LARGEST = 2**63  # what 64 bits cannot hold
ODD_BASE = re.compile(r"[-+]?(0[0-7_]+|[0-9_]+(:[0-9._]+)+)")
UNWRITABLE = re.compile("[\0\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """Loads plain values, and refuses a key that comes twice, of which YAML would keep the last in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        count = Counter((key.tag, key.value) for key in keys)
        for key in keys:
            if count[key.tag, key.value] > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {shown(key.value)} comes twice", problem_mark=key.start_mark
                )
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > VALUES:
            raise yaml.MarkedYAMLError(problem="too many merged keys", problem_mark=node.start_mark)


def _in_base_ten(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    """Refuses 0777 and 12:30, which YAML reads in base 8 and base 60: 511 and 750."""
    if ODD_BASE.fullmatch(node.value):
        problem = f"{shown(node.value, quoted=False)} is no number in base ten; write one, or text in quotes"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    made = loader.construct_yaml_int(node) if node.tag.endswith(":int") else loader.construct_yaml_float(node)
    return float(made) if isinstance(made, float) else int(made)


_Loader.add_constructor("tag:yaml.org,2002:int", _in_base_ten)
_Loader.add_constructor("tag:yaml.org,2002:float", _in_base_ten)


def read_yaml(text: str, what: str) -> Any:
    """Returns what the text means. Raises `RecipeError`, whose sentence begins with `what`, the text's name."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{what} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise RecipeError(f"{what} is not YAML: it is nested too deep") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of a tag's constructor
        raise RecipeError(f"{what} is not YAML: a value cannot be read ({shown(str(error))})") from error


def check_plain(content: Any) -> None:
    """Raises `RecipeError` for values that no recipe can hold or write: of a kind, size or depth that it has no use
    for. Objects of Python, which only a recipe made in Python has, are not looked at."""
    for count, (place, value) in enumerate(_values(content, ())):
        if fault := _fault(value, len(place)) or (place[-1] in PATHS and _unusable(value)):
            raise RecipeError(f"{shown('.'.join(map(str, place)), quoted=False)}: {fault}")
        if count > VALUES:
            raise RecipeError(f"it holds more than {VALUES:,} values; an alias of aliases, *name, repeats them all")


def _values(content: Any, place: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if place:
        yield place, content
    if len(place) <= DEPTH:
        inner = content.items() if isinstance(content, Mapping) else ()
        for key, value in enumerate(content) if isinstance(content, list | tuple) else inner:
            yield (*place, "a key"), key
            yield from _values(value, (*place, key))


def _fault(value: Any, depth: int) -> str | None:
    if depth > DEPTH:
        return f"sections are nested more than {DEPTH} deep"
    if isinstance(value, int) and abs(value) >= LARGEST:
        return f"a whole number must be below 2^63, got {shown(value)}"
    if isinstance(value, date | bytes | set | frozenset):
        kind = type(value).__name__
        return f"{shown(str(value), quoted=False)} is a {kind} of YAML, which no key takes; write text in quotes"
    if isinstance(value, str) and (bad := UNWRITABLE.search(value)):
        return f"the text holds {bad[0]!a}, which cannot be written to a file; remove it"
    return None


def _unusable(path: Any) -> str | None:
    """Says of a path whether it is longer than file systems take."""
    if isinstance(path, str) and (max(len(os.fsencode(part)) for part in path.split("/")) > 255 or len(path) > 4000):
        return f"{shown(path)} is too long for the name of a file"
    return None
