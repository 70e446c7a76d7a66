"""What scores the student's rollouts. The training loop knows teachers by this protocol only."""

from collections.abc import Mapping
from typing import Protocol

from hopd.errors import RecipeError, nearest
from hopd.objective import Detail, Signal
from hopd.rollout.batch import Batch


class Teacher(Protocol):
    @property
    def gives(self) -> Detail:
        """How much of its distribution this teacher can give; preflight compares it with what the objective needs."""
        ...

    def score(self, batch: Batch) -> Signal:
        """The teacher's view of the batch's loss tokens, in the order of `batch.at`. Never a zero in place of a score
        that could not be had: that is an error."""
        ...


class RoutedTeacher:
    """Several teachers, one for each kind of prompt: `batch.teacher` names the one that scores it."""

    def __init__(self, teachers: Mapping[str, Teacher]):
        self.teachers = dict(teachers)

    @property
    def gives(self) -> Detail:
        return min(teacher.gives for teacher in self.teachers.values())

    def score(self, batch: Batch) -> Signal:
        if batch.teacher not in self.teachers:
            raise RecipeError(
                f"a prompt names the teacher {batch.teacher!r}; the recipe has {', '.join(self.teachers)}"
                f"{nearest(str(batch.teacher), self.teachers)}"
            )
        return self.teachers[batch.teacher].score(batch)
