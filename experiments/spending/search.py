"""Looks for the best rate of each spend with one seed, and names the runs that compare them."""

from collections.abc import Callable, Sequence
from typing import Any

from experiments.spending.case import Case
from experiments.spending.job import Job
from experiments.spending.spend import Spend

RATES = (1e-4, 2e-4, 5e-5, 4e-4)
SEEDS = (0, 1, 2)
ONE_SETTING = "adaptive"


def searching(spends: Callable[[Case], dict[str, Spend]], cases: Sequence[Case]) -> list[Job]:
    """Returns every spend of every case at every rate, with one seed."""
    return [Job(case.name, spend, rate) for rate in RATES for case in cases for spend in spends(case)]


def chosen(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Returns the best rate by case and spend: that with the highest accuracy on the validation problems, the mean of
    the last two evaluations; of equals the lowest. The adaptive controller has one rate for all cases, the best in the
    mean over them, so that it has one setting."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    for line in results:
        if "curve" in line and not line["tested"]:
            last = [point["accuracy"] for point in line["curve"][-2:]]
            found.setdefault((line["case"], line["spend"]), {})[line["rate"]] = sum(last) / len(last)
    together = [accuracies for (_, spend), accuracies in found.items() if spend == ONE_SETTING]
    tried = [rate for rate in RATES if together and all(rate in accuracies for accuracies in together)]
    best = max(tried, key=lambda rate: (sum(accuracies[rate] for accuracies in together), -rate), default=None)
    return {
        key: best
        if key[1] == ONE_SETTING and best is not None
        else max(accuracies, key=lambda rate: (accuracies[rate], -rate))
        for key, accuracies in found.items()
    }


def comparing(results: Sequence[dict[str, Any]], cases: Sequence[Case]) -> list[Job]:
    """Returns the runs at the chosen rates, tested, without and with the end game."""
    rates = {key: rate for key, rate in chosen(results).items() if key[0] in {case.name for case in cases}}
    return [
        Job(case, spend, rate, seed, end_game, tested=True)
        for end_game in (False, True)
        for seed in SEEDS
        for (case, spend), rate in rates.items()
    ]
