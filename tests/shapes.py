"""What the tests' import hook checks at every call of a function of hopd: the shapes and dtypes of its tensors.

Other types are mypy's: at run time a protocol cannot be checked, and tests hand in fakes, and wrong types on purpose.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the annotations that name a tensor's shape checked, and those only."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if _names_a_shape(hint)}
    return beartype(function)


def _names_a_shape(hint: Any) -> bool:
    """Also inside of a tuple, a list, or an optional one."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_names_a_shape(part) for part in get_args(hint))
