"""Defines the protocol of a teacher, all that the training loop knows of it, and a teacher that routes to several."""

from collections.abc import Mapping
from typing import Protocol

from hopd.errors import RecipeError, nearest
from hopd.objective import Detail, Signal
from hopd.rollout.batch import Batch


class Teacher(Protocol):
    """Scores the student's rollouts."""

    @property
    def gives(self) -> Detail:
        """Returns how much of its distribution it can give; preflight compares it with what the objective needs."""
        ...

    def score(self, batch: Batch) -> Signal:
        """Returns the teacher's signal at the batch's loss tokens, in the order of `batch.at`.

        A score that cannot be had is an error, never a zero."""
        ...


class RoutedTeacher:
    """Passes each batch to the teacher that `batch.teacher` names. `score` raises `RecipeError` for an unknown name."""

    def __init__(self, teachers: Mapping[str, Teacher]):
        self.teachers = dict(teachers)

    @property
    def gives(self) -> Detail:
        """Returns the least that any of the teachers gives."""
        return min(teacher.gives for teacher in self.teachers.values())

    def score(self, batch: Batch) -> Signal:
        """Returns the signal of the batch's own teacher."""
        if batch.teacher not in self.teachers:
            raise RecipeError(
                f"a prompt names the teacher {batch.teacher!r}; the recipe has {', '.join(self.teachers)}"
                f"{nearest(str(batch.teacher), self.teachers)}"
            )
        return self.teachers[batch.teacher].score(batch)


def by_name(teacher: Teacher) -> dict[str, Teacher]:
    """Returns a run's teachers by name; an only teacher has the empty name."""
    return teacher.teachers if isinstance(teacher, RoutedTeacher) else {"": teacher}
