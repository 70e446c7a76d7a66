"""What the language experiments share: the quickstart's recipe with changes, run to its end or read if it was."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hopd.quickstart import RECIPE
from hopd.recipe import Recipe
from hopd.training.distiller import Distiller
from hopd.training.progress import Progress

SEEDS = 3
OPD = {"controller": "full"}
POPD = {"controller": "progressive", "start": 30, "increment": 6}
HELD_OUT = 256  # problems of an evaluation: a share of 0.95 has a standard error of 1.4 points


def topd(ratio: float) -> dict[str, Any]:
    return {"controller": "truncated", "ratio": ratio}


def quickstart(name: str, seed: int, work: Path, horizon: Mapping[str, Any], steps: int, every: int) -> Recipe:
    """The quickstart's recipe with another horizon and number of steps, evaluated on `HELD_OUT` problems."""
    recipe = Recipe.load(RECIPE, [f"seed={seed}"])
    assert recipe.evaluation is not None
    evaluation = recipe.evaluation.model_dump() | {"every": every, "at_start": True}
    evaluation["task"] = dict(evaluation["task"]) | {"size": HELD_OUT}
    training = recipe.training.model_dump() | {"steps": steps}
    changes = {"name": name.replace(" ", "-"), "output": str(work), "horizon": dict(horizon), "training": training}
    return recipe.with_changes(**changes, evaluation=evaluation)


def train(recipe: Recipe) -> list[dict[str, Any]]:
    """The evaluations of the run, each with its costs; a run that was interrupted goes on."""
    result = Distiller(recipe, resume=True, progress=Progress(quiet=True)).train()
    return list(result.directory.read("evaluations"))


def final(results: Sequence[Mapping[str, Any]], key: str = "accuracy") -> list[float]:
    """The last evaluation of each seed."""
    return [run["curve"][-1][key] for run in results]


def student_after(recipe: Recipe) -> str:
    """Where the trained student lies."""
    return str(sorted((recipe.directory / "checkpoints").glob("step-*"))[-1])
