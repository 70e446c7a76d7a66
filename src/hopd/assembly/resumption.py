"""Compares a resumed run with the one that was left: what it reads, and the learning rate that it goes on with."""

from collections.abc import Mapping

from hopd.errors import RecipeError
from hopd.processes import Processes
from hopd.recipe import Recipe
from hopd.run.directory import RunDirectory
from hopd.run.marks import Mark, Marks, changes
from hopd.training.optimizer import MasterOptimizer


def check_marks(
    saved: Mapping[str, Mark], marks: Marks, accepted: bool, directory: RunDirectory, processes: Processes
) -> list[str]:
    """Returns notes about what differs from the checkpoint's `saved` marks: what has changed where that is `accepted`,
    and what changes by the day. Raises `RecipeError`, on all processes, for other changes."""
    changed, daily = list[str](), list[str]()
    with processes.together():
        if saved and processes.is_first:
            changed, daily = changes(saved, marks.all)
            if changed and not accepted:
                raise RecipeError(
                    f"{directory.path} began with something else: {'; '.join(changed)}; put it back, start a new run "
                    "(name=...), or go on with it (accept_changes=True)"
                )
    return [f"resumed although {sentence}" for sentence in changed] + [f"note: {sentence}" for sentence in daily]


def rate_notes(recipe: Recipe, optimizer: MasterOptimizer, step: int, directory: RunDirectory) -> list[str]:
    """Returns a note where the run's new length makes the learning rate jump: its schedule is a function of the length.
    `step` steps are complete."""
    line = next((line for line in directory.read("metrics") if line["step"] == step), None)
    if recipe.training.schedule == "constant" or line is None or step >= optimizer.total_steps:
        return []
    before, now = line["learning_rate"], optimizer.learning_rate(step)
    if before == optimizer.learning_rate(step - 1):
        return []
    return [
        f"learning rate: {recipe.training.schedule} over {optimizer.total_steps} steps gives step {step + 1} the rate "
        f"{now:.3g}; step {step} had {before:.3g}, since the run was to have another length. To keep a low rate, start "
        "a new run from the checkpoint, with schedule: constant"
    ]
