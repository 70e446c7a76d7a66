"""Compares spends: looks for each one's best rate with one seed, and then runs that with three.

`python -m experiments.spending schemes --out results.jsonl` appends a line of JSON for each run; what the file has is
not run again.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.spending.case import CASES, Case
from experiments.spending.job import Job
from experiments.spending.pool import run
from experiments.spending.spend import Spend, grid, schemes

RATES = (1e-4, 2e-4, 4e-4, 8e-4)
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


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.spending", description=__doc__)
    parser.add_argument("spends", choices=("schemes", "grid"), help="what to compare")
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES), help="on these tasks")
    parser.add_argument("--out", type=Path, required=True, help="append results to this file")
    parser.add_argument("--root", type=Path, default=Path("runs/spending"), help="keep the models in this folder")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes on the CPU")
    parser.add_argument("--gpu-workers", type=int, default=0, help="processes on the GPU")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so many seconds")
    wanted = parser.parse_args(arguments)
    cases, spends = [CASES[name] for name in wanted.cases], schemes if wanted.spends == "schemes" else grid
    deadline = time.monotonic() + wanted.seconds
    for case in cases:
        if (
            case.setting
            and case.make
            and not (case.setting.models(wanted.root / case.name / "runs") / "student").exists()
        ):
            case.make(wanted.root / case.name / "models")

    def missing(jobs: Sequence[Job]) -> list[Job]:
        done = {Job(**{name: line[name] for name in Job.__match_args__}).key for line in read(wanted.out)}
        return [job for job in jobs if job.key not in done]

    for jobs in (lambda: searching(spends, cases), lambda: comparing(read(wanted.out), cases)):
        run(missing(jobs()), wanted.root, wanted.out, wanted.workers, wanted.gpu_workers, deadline)


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a file, none if there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main(sys.argv[1:])
