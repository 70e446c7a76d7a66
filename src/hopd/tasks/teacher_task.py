"""Shows a task as one of its teachers reads it, where that has prompts of its own: privileged context."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hopd.errors import TaskError, nearest
from hopd.tasks.files import fault_of, listed
from hopd.tasks.problem import Problem, Task, refuse, where
from hopd.tasks.rows import find, names


class TeacherTask:
    """Holds the `problems` of a task that one teacher scores, with the prompts that it reads: those in `column`, or the
    student's where it is None. Raises `TaskError` for a problem without the column, or with an empty prompt there."""

    def __init__(self, task: Task, problems: Sequence[Problem], column: str | None):
        self.task, self.column = task, column
        self.problems = problems if column is None else self._replaced(problems, column)

    def score(self, problem: Problem, response: str) -> float:
        """Returns how correct a response is, which does not depend on the prompt."""
        return self.task.score(problem, response)

    def where(self, number: int) -> str:
        """Names the teacher's prompt for a problem."""
        return f"{where(self.task, number)}, the teacher's prompt"

    def _replaced(self, problems: Sequence[Problem], column: str) -> Sequence[Problem]:
        made: list[Problem] = []
        faults: dict[str, list[int]] = {}
        for problem in problems:
            prompt = self._found(problem, column)
            if fault := fault_of(prompt):
                faults.setdefault(fault, []).append(problem.id)
            made.append(replace(problem, prompt=prompt))
        refuse(faults, lambda number: f"{self.where(number)} ({column})")
        return made

    def _found(self, problem: Problem, column: str) -> Any:
        columns = problem.columns or {}
        try:
            return find(columns, column)
        except KeyError as error:
            known = list(names(columns))
            has = f"it has {listed(known)}" if known else "its task has none, so a teacher reads the student's prompts"
            raise TaskError(
                f"{where(self.task, problem.id)}: no column {column!r} for the teacher's prompt"
                f"{nearest(column, known)}; {has}"
            ) from error
