"""Trains the quickstart's recipe with another task, horizon and length, as the language experiments need it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hopd.distiller import Distiller
from hopd.quickstart import RECIPE
from hopd.recipe import Recipe
from hopd.run.progress import Progress

SEEDS = 3
OPD = {"controller": "full"}
POPD = {"controller": "progressive", "start": 30, "increment": 6}
HELD_OUT = 256  # problems of an evaluation: a share of 0.95 has a standard error of 1.4 points


@dataclass(frozen=True)
class Setting:
    """Describes a task other than the quickstart's, whose student and teacher are made once for all seeds.

    `full_tokens` is the length of its answers, `prompts` their number in a step, and `training` replaces settings of
    the quickstart's training. `held_out` replaces those of `task` that make it the evaluation's, with `problems`. `own`
    is what a student reads that teaches itself; then there is no other teacher.
    """

    task: Mapping[str, Any]
    held_out: Mapping[str, Any]
    full_tokens: int
    prompts: int = 32
    problems: int = HELD_OUT
    training: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)

    def models(self, work: Path) -> Path:
        """Returns the folder of student and teacher; `work` is the folder of any seed."""
        return work.parent / "models"


def topd(ratio: float) -> dict[str, Any]:
    """Returns the horizon of TOPD with the ratio ρ (Eq. 12)."""
    return {"controller": "truncated", "ratio": ratio}


def quickstart(
    name: str,
    seed: int,
    work: Path,
    horizon: Mapping[str, Any],
    steps: int,
    every: int,
    setting: Setting | None = None,
) -> Recipe:
    """Returns the quickstart's recipe with another horizon and number of steps, evaluated on `HELD_OUT` problems; with
    a `setting`, on its task and with its models."""
    recipe = Recipe.load(RECIPE, [f"seed={seed}"])
    assert recipe.evaluation is not None
    evaluation = recipe.evaluation.model_dump() | {"every": every, "at_start": True}
    evaluation["task"] = dict(evaluation["task"]) | {"size": HELD_OUT}
    training = recipe.training.model_dump() | {"steps": steps}
    changes = {"name": name.replace(" ", "-"), "output": str(work), "horizon": dict(horizon), "training": training}
    if setting:
        rollout = {"full_tokens": setting.full_tokens, "prompts": setting.prompts}
        changes |= {"task": dict(setting.task), "rollout": recipe.rollout.model_dump() | rollout}
        changes["training"] = training | dict(setting.training)
        teacher = "student" if setting.own else "teacher"
        changes["student"] = {"model": str(setting.models(work) / "student")}
        changes["teacher"] = {"model": str(setting.models(work) / teacher)} | dict(setting.own)
        evaluation["task"] = dict(setting.task) | dict(setting.held_out) | {"size": setting.problems}
    return recipe.with_changes(**changes, evaluation=evaluation)


def train(recipe: Recipe) -> list[dict[str, Any]]:
    """Trains, and returns the evaluations of the run, each with its costs; an interrupted run continues, and a finished
    one is only read. Seconds are processor time, to which other programs on the machine add nothing."""
    result = Distiller.of(recipe, resume=True, progress=Progress(quiet=True), clock=time.process_time).train()
    return list(result.directory.read("evaluations"))


def final(results: Sequence[Mapping[str, Any]], key: str = "accuracy") -> list[float]:
    """Returns one measure of each seed's last evaluation."""
    return [run["curve"][-1][key] for run in results]


def student_after(recipe: Recipe) -> str:
    """Returns the folder of the trained student."""
    return str(sorted((recipe.directory / "checkpoints").glob("step-*"))[-1])
