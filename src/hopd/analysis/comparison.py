"""Compares finished runs: scores at the full length by seed and by problem, and the cost to reach them.

The runs may differ in how they were trained (the horizon, for example) and in the seed, but not in what was measured:
that is an error, which says what differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from hopd.errors import RecipeError
from hopd.evaluation.intervals import paired_interval
from hopd.forecast.machine import Machine
from hopd.recipe.document import read_yaml
from hopd.run.environment import read
from hopd.run.files import read_lines
from hopd.run.marks import prompts_change

# Keys of the recipe that decide what is measured: they must be equal in all runs.
SAME = ("student", "teacher", "teachers", "task", "evaluation", "rollout.full_tokens", "rollout.prompt_tokens")
FREE = ("every", "every_flops", "at_start", "rows")  # keys of an evaluation that do not change its result
COSTS = {
    "training_seconds": "seconds",
    "generated_tokens": "tokens",
    "serial_tokens": "serial tokens",
    "training_flops": "FLOPs",
    "modelled_seconds": "modelled seconds",  # only where a machine is given
}


@dataclass(frozen=True)
class Run:
    """Holds a finished run.

    `curve` has its evaluations, each with the cost up to it; `scores` the last score of each problem, and `problems` a
    fingerprint of these problems.
    """

    path: Path
    recipe: Mapping[str, Any]
    curve: tuple[Mapping[str, Any], ...]
    problems: str
    scores: tuple[float, ...]

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Reads a run's directory. Raises `RecipeError` if it holds no finished and evaluated run."""
        if not (path / "recipe.yaml").exists():
            raise RecipeError(f"{path} is not a run: it has no recipe.yaml")
        recipe = read_yaml((path / "recipe.yaml").read_text(encoding="utf-8"), f"{path}/recipe.yaml")
        if not isinstance(recipe, dict) or not isinstance(recipe.get("training"), dict):
            raise RecipeError(f"{path} is not a run: its recipe.yaml has no training")
        curve = read_lines(path / "evaluations.jsonl")
        if not curve:
            raise RecipeError(f"{path} was never evaluated; give its recipe an evaluation section, or run hopd eval")
        metrics = read_lines(path / "metrics.jsonl")
        steps = [line["step"] for line in metrics]
        planned = recipe["training"].get("steps")
        if curve[-1]["step"] != steps[-1] or (planned is not None and steps[-1] < planned):
            raise RecipeError(
                f"{path} is not finished: {steps[-1]} steps of {planned or 'more'}; continue it with resume=True"
            )
        last = next((line for line in read_lines(path / "scores.jsonl") if line["step"] == steps[-1]), None)
        if last is None:
            raise RecipeError(f"{path} has no scores.jsonl with the scores of each problem: train it again")
        if not all("serial_tokens" in line for line in metrics):  # hopd before 0.3 took some steps, and counted none
            curve = [{key: value for key, value in point.items() if key != "serial_tokens"} for point in curve]
        return cls(path, recipe, tuple(curve), last["problems"], tuple(last["scores"]))

    @property
    def seed(self) -> int:
        """Returns the seed of the run."""
        return int(self.recipe["seed"])

    @property
    def last(self) -> float:
        """Returns the last score."""
        return float(self.curve[-1]["score"])

    def records(self, kind: str) -> bool:
        """Tells whether every evaluation has this cost."""
        return all(kind in point for point in self.curve)

    def on(self, machine: Machine) -> "Run":
        """Adds what each evaluation's costs would be in seconds of the machine. Raises `RecipeError` if the run has no
        serial tokens."""
        if not self.records("serial_tokens"):
            raise RecipeError(
                f"{self.path} has steps without serial tokens, which hopd counts since 0.3: train it again, or compare "
                "without --machine"
            )
        seconds = [machine.seconds(point["serial_tokens"], point["training_flops"]) for point in self.curve]
        curve = zip(self.curve, seconds, strict=True)
        return replace(self, curve=tuple({**point, "modelled_seconds": modelled} for point, modelled in curve))

    def cost_to(self, target: float, kind: str) -> float | None:
        """Returns the run's cost when an evaluation first reached `target`, or None if none did."""
        return next((point[kind] for point in self.curve if point["score"] >= target), None)


@dataclass(frozen=True)
class Comparison:
    """Holds the mean difference over seeds, the other's last score minus the baseline's, with 95 % intervals.

    `over_problems` is for these weights on other problems (paired bootstrap), `over_seeds` for other seeds on these
    problems (Student's t; `p` is of the paired t-test), and `over_both` for other seeds on other problems: with one
    seed these are not known. Costs are named as in `COSTS`, and are those that all runs have; `machine` is the one of
    the modelled seconds.
    """

    baseline: str
    other: str
    seeds: tuple[int, ...]
    scores: Mapping[str, tuple[float, ...]]
    difference: float
    over_problems: tuple[float, float]
    over_seeds: tuple[float, float] | None
    over_both: tuple[float, float] | None
    p: float | None
    problems: int
    target: float
    cost_to_target: Mapping[str, Mapping[str, tuple[float | None, ...]]]
    cost: Mapping[str, Mapping[str, tuple[float, ...]]]
    machine: Machine | None = None

    def lines(self) -> list[str]:
        """Returns the comparison as text, one entry per line."""
        count = "one seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        lines = [f"{count} ({', '.join(map(str, self.seeds))}), evaluated to the full length"]
        for name in (self.baseline, self.other):
            scores = ", ".join(f"{score:.4g}" for score in self.scores[name])
            lines.append(f"{name}: {np.mean(self.scores[name]):.4g} ({scores})")
        lines.append(f"{self.other} − {self.baseline}: {self.difference:+.4g}, 95 % intervals:")
        lines.append(
            f"  on other problems, these weights: {_span(self.over_problems)} ({self.problems} problems, paired)"
        )
        if self.over_seeds and self.over_both:
            over_seeds, over_both = _span(self.over_seeds), _span(self.over_both)
            lines.append(f"  with other seeds, these problems: {over_seeds} (paired t-test, p = {self.p:.2g})")
            lines.append(f"  with other seeds on other problems: {over_both}")
        else:
            lines.append(
                "  with other seeds: unknown, one seed says nothing about others; train both sides again with another "
                "seed and name all runs"
            )
        for kind in self.cost[self.baseline]:
            unit = COSTS[kind] + (f" ({self.machine})" if kind == "modelled_seconds" else "")
            mine, theirs = (np.mean(self.cost[name][kind]) for name in (self.other, self.baseline))
            lines.append(f"{unit}: {mine:.3g} against {theirs:.3g} ({mine / theirs:.2f})")
            reached = [self.cost_to_target[name][kind] for name in (self.other, self.baseline)]
            lines.append(f"{unit} to {self.target:.4g}: {_reached(reached[0])} against {_reached(reached[1])}")
        if "serial_tokens" not in self.cost[self.baseline]:
            lines.append("serial tokens: unknown, since some steps were taken by hopd before 0.3")
        return lines


def compare(
    baseline: tuple[str, Sequence[Path]], other: tuple[str, Sequence[Path]], machine: Machine | None = None
) -> Comparison:
    """Compares two ways of training, each given as its name and one run per seed, also in seconds of a
    `machine`. With one seed, the interval over problems is all that is known.

    The target of the costs is the baseline's mean last score. Raises `RecipeError` if the runs cannot be compared.
    """
    runs = {
        name: sorted((Run.read(path) for path in paths), key=lambda run: run.seed) for name, paths in (baseline, other)
    }
    if machine:
        runs = {name: [run.on(machine) for run in of_name] for name, of_name in runs.items()}
    first, second = runs[baseline[0]], runs[other[0]]
    kinds = [kind for kind in COSTS if all(run.records(kind) for run in (*first, *second))]
    seeds = tuple(run.seed for run in first)
    if tuple(run.seed for run in second) != seeds or len(set(seeds)) < len(seeds):
        raise RecipeError(
            f"both sides need the same seeds, each once, got {list(seeds)} for {baseline[0]} and "
            f"{[run.seed for run in second]} for {other[0]}"
        )
    for run in (*first[1:], *second):
        _check_same(first[0], run)
    by_problem = np.subtract([run.scores for run in second], [run.scores for run in first])
    scores = {name: tuple(run.last for run in of_name) for name, of_name in runs.items()}
    differences = np.subtract(scores[other[0]], scores[baseline[0]])
    several = len(seeds) > 1
    target = float(np.mean(scores[baseline[0]]))
    mean = float(differences.mean())
    over_seeds, p = _over_seeds(differences) if several else (None, None)
    return Comparison(
        baseline=baseline[0],
        other=other[0],
        seeds=seeds,
        scores=scores,
        difference=mean,
        over_problems=paired_interval(by_problem),
        over_seeds=over_seeds,
        over_both=paired_interval(by_problem, over_runs=True) if several else None,
        p=p,
        problems=by_problem.shape[1],
        target=target,
        cost_to_target={
            name: {kind: tuple(run.cost_to(target, kind) for run in of_name) for kind in kinds}
            for name, of_name in runs.items()
        },
        cost={
            name: {kind: tuple(float(run.curve[-1][kind]) for run in of_name) for kind in kinds}
            for name, of_name in runs.items()
        },
        machine=machine,
    )


def _over_seeds(differences: Float[np.ndarray, "seeds"]) -> tuple[tuple[float, float], float]:
    """Returns the interval of the mean difference with other seeds, and the p-value of the paired t-test."""
    mean, freedom = float(differences.mean()), len(differences) - 1
    error = float(differences.std(ddof=1)) / len(differences) ** 0.5
    reach = float(stats.t.ppf(0.975, freedom)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    return (mean - reach, mean + reach), p


def _check_same(one: Run, other: Run) -> None:
    for key in SAME:
        mine, theirs = (_without_free(_at(run.recipe, key)) for run in (one, other))
        if mine != theirs:
            raise RecipeError(
                f"{one.path} and {other.path} cannot be compared: {key} is {mine!r} in the first and {theirs!r} in the "
                "second"
            )
    if other.problems != one.problems:
        raise RecipeError(
            f"{one.path} and {other.path} cannot be compared: their evaluation problems differ, though their recipes "
            f"agree; {_why(one, other)}"
        )


def _why(one: Run, other: Run) -> str:
    """Says why the evaluation prompts of two runs differ, as far as their marks tell."""
    marks = [read(run.path).get("hashes", {}).get("evaluation prompts") for run in (one, other)]
    if None in marks or marks[0] == marks[1]:
        return "was a file changed between the runs?"
    return prompts_change(marks[0], marks[1])


def _without_free(section: Any) -> Any:
    if not isinstance(section, dict):
        return section
    return {key: value for key, value in section.items() if key not in FREE}


def _at(recipe: Mapping[str, Any], key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = (value or {}).get(part)
    return value


def _span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:+.4g} to {interval[1]:+.4g}"


def _reached(costs: Sequence[float | None]) -> str:
    reached = [cost for cost in costs if cost is not None]
    return f"{np.mean(reached):.3g} ({len(reached)} of {len(costs)} runs)" if reached else "never"
