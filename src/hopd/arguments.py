"""Reads arguments that the command line's commands share."""

from pathlib import Path
from typing import Annotated

import typer

from hopd.errors import RecipeError

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="Read this recipe, such as recipes/quickstart.yaml.")
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a recipe key, such as training.steps=10; repeat for more keys."
    ),
]


def fractions(text: str) -> list[float]:
    """Reads numbers separated by commas, and returns them sorted, each once."""
    try:
        return sorted({float(number) for number in text.split(",")})
    except ValueError:
        raise RecipeError(f"write fractions as numbers separated by commas, such as 0,0.1,0.5; got {text!r}") from None


def named_runs(text: str) -> tuple[str, list[Path]]:
    """Reads NAME=RUN,RUN,…."""
    name, given, paths = text.partition("=")
    if not given or not name or not paths:
        raise RecipeError(
            f"write NAME=RUN,RUN,… for the runs to compare, such as opd=runs/opd-0,runs/opd-1; got {text!r}"
        )
    return name, [Path(path) for path in paths.split(",")]
