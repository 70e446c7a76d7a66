"""Reads prompts from files: JSONL, Parquet, a directory of `datasets`, or the name of a data set on the hub."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from hopd import plugin
from hopd.errors import TaskError, nearest
from hopd.tasks.answer import CHECKS, Check, checker, math
from hopd.tasks.outcome import Outcome
from hopd.tasks.problem import Problem
from hopd.tasks.unreadable import unreadable


class PromptFile:
    """Makes one problem of each row: `prompt` names the column with the text or the chat messages, `answer` the column
    that `check` compares the response with, and `teacher` the column with the teacher's name.

    `check` is `math`, `exact`, or a function of your own, called as `function(response, answer)`, by its name,
    module:function, or itself; it returns a float from 0 to 1. It runs in processes of its own, and each answer has
    `check_seconds`, or two seconds for `math`; a lambda, or a function of a notebook, runs in this process.
    Raises `RecipeError` for a check that cannot be loaded, `TaskError` for a missing file or column, an empty prompt,
    or a row that cannot be read.
    """

    def __init__(
        self,
        path: str,
        prompt: str = "prompt",
        answer: str | None = None,
        check: str | Check = "math",
        split: str = "train",
        teacher: str | None = None,
        limit: int | None = None,
        check_seconds: float | None = None,
    ):
        self.path, self.split, self.limit = path, split, limit
        self.columns = {"prompt": prompt, "answer": answer, "teacher": teacher}
        self.check = check if callable(check) else load_check(check)
        self._checker = checker(self.check, check_seconds)

    @cached_property
    def problems(self) -> Sequence[Problem]:
        """Reads the file's problems, at most `limit` of them; an id is the number of a row."""
        problems = []
        for number, row in enumerate(islice(_rows(self.path, self.split), self.limit)):
            problems.append(self._problem(number, row))
        if not problems:
            raise TaskError(f"{self.path} has no rows")
        return problems

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

    def _check_column(self) -> None:
        if self.columns["answer"] is None:
            raise TaskError(
                f"{self.path}: to check answers, name the answer column: answer: COLUMN, in Python answer=..."
            )

    def _problem(self, number: int, row: dict[str, Any]) -> Problem:
        where = f"{self.path}, row {number + 1}"
        values = {}
        for role, column in self.columns.items():
            if column is not None and column not in row:
                raise TaskError(
                    f"{where}: no column {column!r} for the {role}{nearest(column, row)}; it has {', '.join(row)}"
                )
            values[role] = None if column is None else row[column]
        prompt = values["prompt"]
        if self.columns["answer"] and (values["answer"] is None or not str(values["answer"]).strip()):
            raise TaskError(f"{where}: the answer is empty, and every response would be scored wrong")
        if not prompt or (isinstance(prompt, str) and not prompt.strip()):
            raise TaskError(f"{where}: the prompt is empty")
        if not isinstance(prompt, str | list):
            raise TaskError(f"{where}: a prompt is a text or a list of chat messages, got {type(prompt).__name__}")
        return Problem(id=number, prompt=prompt, answer=values["answer"], teacher=values["teacher"])


def _rows(source: str, split: str) -> Iterator[dict[str, Any]]:
    path = Path(source)
    if path.suffix in (".jsonl", ".parquet") and not path.is_file():
        raise TaskError(f"{source} does not exist (looked in {Path.cwd()})")
    if path.suffix == ".jsonl":
        yield from _json_lines(path)
    elif path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.ParquetFile(path)
        except pyarrow.ArrowException as error:
            raise TaskError(f"{path} is no Parquet file: {error}") from error
        for batch in table.iter_batches():
            yield from batch.to_pylist()
    elif path.suffix == ".json":
        raise TaskError(f"{source}: write one JSON object a line and name the file .jsonl")
    else:
        yield from _dataset(source, split)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except json.JSONDecodeError as error:
                raise TaskError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
            except UnicodeDecodeError as error:
                raise TaskError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from error
            if not isinstance(row, dict):
                raise TaskError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
            yield row


def _dataset(source: str, split: str) -> Iterator[dict[str, Any]]:
    import datasets

    try:
        if Path(source).is_dir() and not any(Path(source).glob("*.parquet")):
            loaded = datasets.load_from_disk(source)
            data = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            data = datasets.load_dataset(source, split=split)
    except (OSError, ValueError, KeyError) as error:
        raise TaskError(
            f"{source!r} is no .jsonl or .parquet file, no datasets directory, and no dataset with a split {split!r} "
            f"that can be reached: {str(error).splitlines()[0]}"
        ) from error
    yield from data


def load_check(name: str) -> Check:
    """Returns the check of that name. Raises `TaskError` for an unknown one, `RecipeError` for one of your own that
    cannot be imported or called."""
    if name in CHECKS:
        return CHECKS[name]
    if not plugin.is_plugin(name):
        raise TaskError(f"check must be one of {', '.join(CHECKS)}, or module:function; got {name!r}")
    check: Callable[..., Any] = plugin.load_function(name, "check", ("response", "answer"))
    return check
