"""Loads classes and functions of your own, which a recipe names `my.module:Name`. It knows nothing of what they do.

The module must be importable: installed, beside the recipe, or in the directory from which `hopd` is run. A class is
made from the options that the recipe gives beside its name, and they are checked against its signature.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from hopd.errors import HopdError, RecipeError, described, nearest, shown

# Options that no parameter can be named after, because they are reserved words of Python: by the parameter's name.
OPTIONS = {"continues": "continue"}


@dataclass(frozen=True)
class Plugin:
    """Names a class of your own, and the options that it is made from."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: Mapping[str, Any], tag: str) -> "Plugin | None":
        """Reads what `build` would make, or gives None if that is no plug-in."""
        options = {option: value for option, value in spec.items() if option != tag}
        return cls(spec[tag], options) if is_plugin(spec.get(tag)) else None

    def spec(self, tag: str) -> dict[str, Any]:
        """Returns the mapping as a recipe holds it."""
        return {tag: self.name, **self.options}


def is_plugin(name: object) -> bool:
    """Tells whether a name in a recipe is of the form `my.module:Name`."""
    return isinstance(name, str) and ":" in name


def load(name: str, what: str) -> Any:
    """Imports the object that `name`, `my.module:Name`, stands for. Errors begin with `what`, its key in the recipe.

    Raises `RecipeError` if the name has another form, the module cannot be imported, or has no such attribute.
    """
    path, _, attribute = name.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in path.split(".")):
        raise RecipeError(f"{what} {shown(name)} is no name of a plug-in; write my.module:Name, as in an import")
    module = _import(path, f"{what} {shown(name)}")
    if not hasattr(module, attribute):
        raise RecipeError(
            f"{what} {shown(name)}: {path} ({getattr(module, '__file__', 'built in')}) has no {shown(attribute)}"
            f"{nearest(attribute, vars(module))}"
        )
    return getattr(module, attribute)


def load_function(name: str, what: str, arguments: Sequence[str]) -> Callable[..., Any]:
    """Loads a function that is called with `arguments`, by position. Raises `RecipeError`, also if it takes others."""
    function: Any = load(name, what)
    takes = ", ".join(arguments)
    if not callable(function):
        raise RecipeError(
            f"{what} {shown(name)} is no function but {type(function).__name__}; name one that takes {takes}"
        )
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise RecipeError(
            f"{what} {shown(name)} is called with {takes}, by position, and takes {inspect.signature(function)}: "
            f"{error}"
        ) from error
    except ValueError:  # a function written in C, of which nothing is known
        pass
    return function  # type: ignore[no-any-return]


def find_beside(name: str, directory: Path, what: str) -> None:
    """Makes the module of `name` importable from `directory`, if it lies there. It imports nothing.

    Raises `RecipeError` if Python would import another module by that name.
    """
    module = name.partition(":")[0].partition(".")[0]
    beside = PathFinder.find_spec(module, [str(directory)]) if module.isidentifier() else None
    if beside is None or beside.origin is None:
        return
    if module in sys.modules:
        other = getattr(sys.modules[module], "__file__", None)
    else:
        found = importlib.util.find_spec(module)
        other = found.origin if found else None
    if other is None:
        sys.path.append(str(directory))  # at the end: it must not shadow what is installed
        importlib.invalidate_caches()
    elif not (os.path.exists(other) and os.path.samefile(other, beside.origin)):
        raise RecipeError(
            f"{what} {shown(name)}: the module {module} is {beside.origin}, beside the recipe, and also {other}; give "
            "one of them another name"
        )


def check_options(make: Callable[..., Any], options: Mapping[str, Any], what: str, given: Collection[str] = ()) -> None:
    """Compares options with the signature of `make`, whose parameters named in `given` are no options.

    Raises `RecipeError`, with the nearest name, for an unknown option, and for one that is missing.
    """
    parameters = [p for p in inspect.signature(make).parameters.values() if p.name not in given]
    named = {OPTIONS.get(p.name, p.name): p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    known = list(named)
    for option in options:
        if option in given or (option not in known and all(p.kind != p.VAR_KEYWORD for p in parameters)):
            raise RecipeError(
                f"{what} has no option {shown(option)}{nearest(str(option), known)}; it takes "
                f"{', '.join(known) or 'none'}"
            )
    for option, parameter in named.items():
        if parameter.default is parameter.empty and option not in options:
            raise RecipeError(f"{what} needs {option}")


def construct(make: Callable[..., Any], options: Mapping[str, Any], what: str, **given: Any) -> Any:
    """Calls `make` with the options, checked by `check_options`, and with those of `given` that it has parameters for.

    Raises `RecipeError`.
    """
    check_options(make, options, what, given)
    parameters = inspect.signature(make).parameters
    names = {option: parameter for parameter, option in OPTIONS.items()}
    arguments = {names.get(option, option): value for option, value in options.items()}
    try:
        return make(**{name: value for name, value in given.items() if name in parameters}, **arguments)
    except TypeError as error:  # a value that cannot be compared with a number
        raise RecipeError(
            f"{what} cannot be made of {shown(dict(options))}: a value has the wrong type ({error})"
        ) from error
    except (HopdError, AssertionError):
        raise
    except Exception as error:  # a class of your own
        raise RecipeError(f"{what} cannot be made of {shown(dict(options))}: {_described(error)}") from error


def build(
    section: str, tag: str, classes: Mapping[str, Any], spec: Mapping[str, Any], needs: Collection[str], **given: Any
) -> Any:
    """Makes what the mapping `spec` describes: its `tag` names one of `classes` or a plug-in, the rest are options.

    A plug-in must have the attributes `needs`. Raises `RecipeError`.
    """
    options = dict(spec)
    name = options.pop(tag, None)
    if is_plugin(name):
        made = construct(load_class(name, f"{section}.{tag}"), options, f"{section} '{name}'", **given)
        check_attributes(made, needs, f"{section} '{name}'")
        return made
    if not isinstance(name, str) or name not in classes:
        raise RecipeError(f"{section}.{tag} {must_be(name, classes)}")
    return construct(classes[name], options, f"{section} '{name}'", **given)


def must_be(name: object, known: Collection[str], own: bool = True) -> str:
    """Says which names there are: the end of a sentence that begins with the place of `name`."""
    names = ", ".join(known) + (", or my.module:Name of your own" if own else "")
    return f"must be one of {names}; got {shown(name)}{nearest(str(name), known)}"


def load_class(name: str, what: str) -> Callable[..., Any]:
    """Loads what can be called with options: a class, or a function that makes an object. Raises `RecipeError`."""
    made: object = load(name, what)
    if not callable(made):
        raise RecipeError(
            f"{what} {shown(name)} is no class but {type(made).__name__}; name a class of {name.split(':')[0]}"
        )
    return made


def check_attributes(made: object, needs: Collection[str], what: str) -> None:
    """Raises `RecipeError` unless `made` has all attributes that its place in a run `needs`."""
    if missing := [name for name in needs if name not in dir(made)]:  # `hasattr` would compute a property
        raise RecipeError(f"{what} has no {' and no '.join(missing)}; a class in its place needs {', '.join(needs)}")


def _import(path: str, what: str) -> ModuleType:
    try:
        try:
            return importlib.import_module(path)
        except ModuleNotFoundError as error:
            here = str(Path.cwd())
            if not _is_part(error.name, path) or here in sys.path:
                raise
            sys.path.append(here)  # at the end: it must not shadow what is installed
            importlib.invalidate_caches()
            return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if _is_part(error.name, path):
            raise RecipeError(
                f"{what}: there is no module {error.name} in Python's path, nor in the current directory {Path.cwd()}, "
                "nor beside the recipe; run hopd where the module is, put it beside the recipe, or install it"
            ) from error
        raise RecipeError(f"{what}: {path} imports {error.name}, which is not installed") from error
    except (ImportError, SyntaxError) as error:
        raise RecipeError(f"{what}: {path} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the module runs when it is imported
        raise RecipeError(f"{what}: {path} cannot be imported: {_described(error)}") from error


def _described(error: BaseException) -> str:
    """Names an error of code of your own, and the line that raised it."""
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    where = f" ({Path(last.tb_frame.f_code.co_filename).name}, line {last.tb_lineno})" if last else ""
    return f"{described(error)}{where}"


def _is_part(missing: str | None, path: str) -> bool:
    """Tells whether the module that is missing is `path` or one of its packages, and not something that it imports."""
    return missing is not None and f"{path}.".startswith(f"{missing}.")
