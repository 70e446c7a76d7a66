"""Runs jobs in several processes until a deadline, and appends what they showed to a file, one line of JSON a run.

`python -m experiments.spending search --out results.jsonl` looks for each scheme's best rate. What the file has is not
run again.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.spending.case import CASES
from experiments.spending.job import Job
from experiments.spending.pool import run
from experiments.spending.spend import schemes

RATES = (1e-4, 2e-4, 4e-4, 8e-4)


def search() -> Iterator[Job]:
    """Yields every scheme at every rate, one seed."""
    for rate in RATES:
        for case in CASES.values():
            for scheme in schemes(case):
                yield Job(case.name, scheme, rate)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.spending", description=__doc__)
    parser.add_argument("jobs", help="search, or a file of jobs, one line of JSON each")
    parser.add_argument("--out", type=Path, required=True, help="append results to this file")
    parser.add_argument("--root", type=Path, default=Path("runs/spending"), help="folder of the models")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gpu-workers", type=int, default=0, help="further workers, on a GPU")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing that would end later")
    wanted = parser.parse_args(arguments)
    known = {_key(json.loads(line)) for line in wanted.out.read_text().splitlines()} if wanted.out.exists() else set()
    jobs = (
        list(search())
        if wanted.jobs == "search"
        else [Job(**json.loads(line)) for line in Path(wanted.jobs).read_text().splitlines()]
    )
    missing = [job for job in jobs if _key(asdict(job)) not in known]
    print(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them done before", flush=True)
    run(missing, wanted.root, wanted.out, wanted.workers, wanted.gpu_workers, time.monotonic() + wanted.seconds)


def _key(job: dict[str, Any]) -> str:
    return json.dumps([job.get(name) for name in ("case", "spend", "rate", "seed", "share", "end_game", "horizon")])


if __name__ == "__main__":
    main(sys.argv[1:])
