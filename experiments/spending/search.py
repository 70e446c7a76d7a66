"""Looks for the best rate of each spend with one seed, and names the runs that compare them."""

from collections.abc import Callable, Sequence
from typing import Any

from experiments.spending.case import Case
from experiments.spending.job import Job
from experiments.spending.spend import Spend

RATES = (1e-4, 2e-4, 5e-5, 4e-4)
SEEDS = (0, 1, 2)


def searching(spends: Callable[[Case], dict[str, Spend]], cases: Sequence[Case]) -> list[Job]:
    """Returns every spend of every case at every rate, with one seed."""
    return [Job(case.name, spend, rate) for rate in RATES for case in cases for spend in spends(case)]


def chosen(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Returns the best rate by case and spend: that with the highest accuracy on the validation problems, the mean of
    the last two evaluations; of equals the lowest."""
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for line in results:
        if "curve" in line and not line["tested"]:
            last = [point["accuracy"] for point in line["curve"][-2:]]
            found, key = (sum(last) / len(last), -line["rate"]), (line["case"], line["spend"])
            best[key] = max(best.get(key, (-1.0, 0.0)), found)
    return {key: -rate for key, (_, rate) in best.items()}


def comparing(results: Sequence[dict[str, Any]], cases: Sequence[Case]) -> list[Job]:
    """Returns the runs at the chosen rates, tested, without and with the end game."""
    rates = {key: rate for key, rate in chosen(results).items() if key[0] in {case.name for case in cases}}
    return [
        Job(case, spend, rate, seed, end_game, tested=True)
        for end_game in (False, True)
        for seed in SEEDS
        for (case, spend), rate in rates.items()
    ]
