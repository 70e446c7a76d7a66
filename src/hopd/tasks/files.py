"""Makes problems of the rows of a file or data set."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from math import isfinite
from typing import Any

from hopd import plugin
from hopd.errors import TaskError, described, nearest, shortened
from hopd.tasks.answer import CHECKS, Check, checker, math
from hopd.tasks.outcome import Outcome
from hopd.tasks.problem import Problem, lone_surrogate, refuse
from hopd.tasks.rows import Row, find, names, read
from hopd.tasks.track import track
from hopd.tasks.unreadable import unreadable


class PromptFile:
    """Makes one problem of each row: `prompt` names the column with the text or the chat messages, `answer` the column
    that `check` compares the response with, `teacher` the column with the teacher's name, and `reference` the one with
    an answer to learn from. A name may be a path into a column, `reward_model.ground_truth`. `teacher_prompts` names
    the columns that teachers read in place of the prompt, each by the teacher's name (None: the only one).

    `check` is `math`, `exact`, or a function of your own, called as `function(response, answer)`, by its name,
    module:function, or itself; it returns a float from 0 to 1. It runs in processes of its own, and each answer has
    `check_seconds`, or two seconds for `math`; a lambda, or a function of a notebook, runs in this process. `filter`,
    too, is a function of your own: called with a row, it returns whether the row is used. `unique` leaves out prompts
    that came before, and `limit` keeps the first ones of what is left. Raises `RecipeError` for a function that cannot
    be loaded, `TaskError` for a missing file or column, an empty prompt or answer, or a row that cannot be read.
    `notes` say what was left out, after `problems` were read.
    """

    def __init__(
        self,
        path: str,
        prompt: str = "prompt",
        answer: str | None = None,
        check: str | Check = "math",
        split: str = "train",
        config: str | None = None,
        teacher: str | None = None,
        filter: str | None = None,
        unique: bool = False,
        limit: int | None = None,
        check_seconds: float | None = None,
        teacher_prompts: Mapping[str | None, str] | None = None,
        reference: str | None = None,
    ):
        self.path, self.split, self.config, self.unique, self.limit = path, split, config, unique, limit
        self.columns = {"prompt": prompt, "answer": answer, "teacher": teacher, "reference": reference}
        self.check = check if callable(check) else load_check(check)
        self._checker = checker(self.check, check_seconds)
        self.filter, self.teacher_prompts = filter, teacher_prompts or {}
        self.keeps: Callable[[Row], Any] | None = plugin.load_function(filter, "filter", ("row",)) if filter else None
        self.notes: list[str] = []

    @cached_property
    def problems(self) -> Sequence[Problem]:
        """Reads the file's problems, at most `limit` of them; an id is the number of a row, counted from 0."""
        problems: list[Problem] = []
        faults: dict[str, list[int]] = {}
        left_out = Counter[str]()
        for number, values in self._used(left_out):
            if fault := self._fault(values):
                faults.setdefault(fault, []).append(number)
            else:
                problems.append(Problem(number, **values))
            if len(problems) + sum(map(len, faults.values())) == self.limit:
                break
        refuse(faults, self.where)
        if not problems:
            raise TaskError(f"{self.path} has no rows" + (f" that {self.filter} keeps" if left_out else ""))
        self.notes = [f"{count:,} rows of {self.path} are left out: {reason}" for reason, count in left_out.items()]
        return problems

    def _used(self, left_out: Counter[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields number and values of each row that is used, and counts the others by the reason. Equal prompts, of
        which there may be very many, are one object."""
        named = (*self.columns.values(), *self.teacher_prompts.values())
        columns = None if self.keeps else [column for column in named if column]
        prompts, seen, content_of = dict[Any, Any](), set[Any](), json.JSONEncoder(default=str).encode
        for number, row in enumerate(track(read(self.path, self.split, self.config, columns), f"reading {self.path}")):
            if not self._keeps(number, row):
                left_out[f"{self.filter} does not keep them"] += 1
                continue
            values = {role: self._value(number, row, role, column) for role, column in self.columns.items()}
            prompt = values["prompt"]
            key = prompt if isinstance(prompt, str) else (content_of(prompt),)
            values["prompt"] = prompts.setdefault(key, prompt)
            if self.unique and (key, str(values["teacher"])) in seen:
                left_out["their prompts came before (unique)"] += 1
                continue
            seen.add((key, str(values["teacher"])))
            teacher = values["teacher"]
            if isinstance(teacher, str | None) and (column := self.teacher_prompts.get(teacher)):
                values["columns"] = {column: self._value(number, row, "teacher's prompt", column)}
            yield number, values

    def score(self, problem: Problem, response: str) -> float:
        """Returns the result of `check`, or raises what it raises. Raises `TaskError` without an answer column."""
        self._check_column()
        return float(self.check(response, problem.answer))

    def outcomes(self, answered: Sequence[tuple[Problem, str]]) -> list[Outcome]:
        """Checks many answers, several at once. Raises `TaskError` without an answer column."""
        self._check_column()
        return self._checker.run([(response, problem.answer) for problem, response in answered])

    def remarks(self) -> Iterator[str]:
        """Yields a sentence if `math` cannot read some of the answers."""
        if self.check is math and (remark := unreadable([problem.answer for problem in self.problems])):
            yield f"{self.path}: {remark}"

    def close(self) -> None:
        """Ends the processes that check answers; later calls start new ones."""
        self._checker.close()

    def where(self, number: int) -> str:
        """Names a problem by its row, counted from 1."""
        return f"{self.path}, row {number + 1}"

    def _check_column(self) -> None:
        if self.columns["answer"] is None:
            raise TaskError(
                f"{self.path}: to check answers, name the answer column: answer: COLUMN, in Python answer=..."
            )

    def _keeps(self, number: int, row: Row) -> bool:
        if self.keeps is None:
            return True
        where = f"{self.where(number)}: the filter {self.filter}"
        try:
            kept = self.keeps(row)
        except Exception as error:
            raise TaskError(f"{where} failed with {described(error)}") from error
        if kept is None:
            raise TaskError(f"{where} returned nothing; it must return True for a row to use and False for another")
        return bool(kept)

    def _value(self, number: int, row: Row, role: str, column: str | None) -> Any:
        try:
            return None if column is None else find(row, column)
        except KeyError as error:
            known = list(names(row))
            raise TaskError(
                f"{self.where(number)}: no column {column!r} for the {role}{nearest(str(column), known)}; it has "
                f"{listed(known)}"
            ) from error

    def _fault(self, values: Mapping[str, Any]) -> str | None:
        """Says what is wrong with a row, if anything is."""
        prompt, answer, teacher = values["prompt"], values["answer"], values["teacher"]
        if self.columns["answer"] and (reason := _unusable(answer)):
            return f"the answer {reason}, and every response would be scored wrong"
        if fault := fault_of(prompt):
            return fault
        if self.columns["teacher"] and not isinstance(teacher, str):
            return f"the teacher must be a name, got {type(teacher).__name__}"
        return None


def fault_of(prompt: Any) -> str | None:
    """Says what is wrong with the prompt of a row, if anything is."""
    if prompt is None or (isinstance(prompt, str | list) and _is_empty(prompt)):
        return "the prompt is empty"
    if not isinstance(prompt, str | list):
        return f"a prompt is a text or a list of chat messages, got {type(prompt).__name__}"
    return None


def _is_empty(prompt: str | list[Any]) -> bool:
    """Tells whether there is nothing to answer: no text, or a last message without any. An assistant's last message,
    which is continued, may be empty."""
    if isinstance(prompt, str) or not prompt:
        return _is_blank(prompt)
    last = prompt[-1]
    if not isinstance(last, Mapping) or "role" not in last or last["role"] == "assistant":
        return False  # the chat template says what it wants
    return _is_blank(last.get("content"))


def _is_blank(content: Any) -> bool:
    """Tells whether the content of a message, a text or a list of parts, has no text and nothing else."""
    if isinstance(content, list):
        return all(
            isinstance(part, Mapping) and part.get("type") == "text" and _is_blank(part.get("text")) for part in content
        )
    return content is None or (isinstance(content, str) and not content.strip())


def _unusable(answer: Any) -> str | None:
    if isinstance(answer, float) and not isfinite(answer):
        return f"is {answer}"
    if answer is None or answer in ([], {}) or not str(answer).strip():
        return "is empty"
    broken = lone_surrogate(answer) if isinstance(answer, str) else None
    return f"holds {broken}" if broken else None


def listed(columns: Sequence[str]) -> str:
    """Returns the names of columns in a row, shortened where there are many."""
    return shortened(", ".join(columns), 160)


def load_check(name: str) -> Check:
    """Returns the check of that name. Raises `TaskError` for an unknown one, `RecipeError` for one of your own that
    cannot be imported or called."""
    if name in CHECKS:
        return CHECKS[name]
    if not plugin.is_plugin(name):
        raise TaskError(f"check must be one of {', '.join(CHECKS)}, or module:function; got {name!r}")
    check: Callable[..., Any] = plugin.load_function(name, "check", ("response", "answer"))
    return check
