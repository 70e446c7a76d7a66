"""Takes problems from reasoning-gym: any of its datasets by name, each with its own scorer."""

import contextlib
import inspect
import io
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

from hopd.errors import TaskError, nearest
from hopd.tasks.answer import OWN_SECONDS
from hopd.tasks.outcome import Outcome
from hopd.tasks.problem import Problem
from hopd.tasks.workers import Workers


class ReasoningGym:
    """Makes `size` problems of the dataset `name` from `seed`; `options` are the dataset's own.

    The text in a response's last `<answer> … </answer>` is scored, or all of the response where it has none.
    Raises `TaskError` for an unknown dataset or option.
    """

    def __init__(self, name: str, size: int, seed: int = 0, options: dict[str, Any] | None = None):
        with contextlib.redirect_stdout(io.StringIO()):
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
        if name not in DATASETS:
            raise TaskError(f"reasoning-gym has no dataset {name!r}{nearest(name, DATASETS)}")
        known = inspect.signature(DATASETS[name][1]).parameters
        for option in options or {}:
            if option not in known:
                raise TaskError(f"reasoning-gym's {name} has no option {option!r}{nearest(option, known)}")
        if {"size", "seed"} & set(options or {}):
            raise TaskError(
                "size and seed are keys of the task itself, not options of reasoning-gym; write them next to options"
            )
        try:
            self.dataset = reasoning_gym.create_dataset(name, size=size, seed=seed, **(options or {}))
        except (AssertionError, TypeError, ValueError) as error:
            raise TaskError(f"reasoning-gym refuses the options of {name}: {error}") from error
        self._checker = Workers(partial(_score, self.dataset), OWN_SECONDS, forks=True)

    @cached_property
    def problems(self) -> Sequence[Problem]:
        """Returns the dataset's questions; an answer is the dataset's whole entry, which its scorer needs, and
        its columns are those of the entry."""
        return [
            Problem(id=number, prompt=entry["question"], answer=entry, columns=entry)
            for number, entry in enumerate(map(self.dataset.__getitem__, range(len(self.dataset))))
        ]

    def score(self, problem: Problem, response: str) -> float:
        """Returns the dataset's own score of the response, from 0 to 1."""
        return _score(self.dataset, response, problem.answer)

    def outcomes(self, answered: Sequence[tuple[Problem, str]]) -> list[Outcome]:
        """Checks many answers, several at once: some datasets compute with what a response says."""
        return self._checker.run([(response, problem.answer) for problem, response in answered])

    def remarks(self) -> Iterator[str]:
        """Yields nothing: the answers are the dataset's own."""
        yield from ()

    def close(self) -> None:
        """Ends the processes that check answers; later calls start new ones."""
        self._checker.close()


def _score(dataset: Any, response: str, entry: dict[str, Any]) -> float:
    return float(dataset.score_answer(answer=_answer(response), entry=entry))


def _answer(response: str) -> str:
    if "<answer>" not in response:
        return response.strip()
    return response.rpartition("<answer>")[2].partition("</answer>")[0].strip()
