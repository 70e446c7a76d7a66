"""Compares spends: looks for each one's best rate with one seed, and then runs that with three.

`python -m experiments.spending schemes --out results.jsonl` appends a line of JSON for each run; what the file has is
not run again.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.run import machine
from experiments.spending.case import CASES
from experiments.spending.job import Job
from experiments.spending.page import write
from experiments.spending.pool import run
from experiments.spending.search import comparing, searching
from experiments.spending.spend import grid, schemes
from hopd.run.files import read_lines


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.spending", description=__doc__)
    parser.add_argument("spends", choices=("schemes", "grid", "page"), help="what to compare; or write the page")
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES), help="on these tasks")
    parser.add_argument("--out", type=Path, required=True, help="append results to this file")
    parser.add_argument("--root", type=Path, default=Path("runs/spending"), help="keep the models in this folder")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes on the CPU")
    parser.add_argument("--gpu-workers", type=int, default=0, help="processes on the GPU")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so many seconds")
    wanted = parser.parse_args(arguments)
    if wanted.spends == "page":
        print(write(read(wanted.out), wanted.out.parent, machine()))
        return
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

    def begin(jobs: Sequence[Job]) -> None:
        run(missing(jobs), wanted.root, wanted.out, wanted.workers, wanted.gpu_workers, deadline)

    begin(searching(spends, cases))
    begin(comparing(read(wanted.out), cases))


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a file, none if there is none."""
    return read_lines(path)


if __name__ == "__main__":
    main(sys.argv[1:])
