"""Runs jobs in several processes, each with one thread, until a deadline."""

import json
import os
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from experiments.spending.job import Job


def run(jobs: Sequence[Job], root: Path, out: Path, workers: int, gpu_workers: int, deadline: float) -> None:
    """Runs jobs in their order, as many at once as there are workers."""
    context, queue = get_context("spawn"), list(jobs)
    pools = [ProcessPoolExecutor(1, context, _start, (i >= workers,)) for i in range(workers + gpu_workers)]
    running: dict[Future[dict[str, Any]], tuple[int, Job]] = {}

    def begin(pool: int) -> None:
        if queue and time.monotonic() < deadline:
            job = queue.pop(0)
            running[pools[pool].submit(_run, job, root)] = pool, job

    for pool in range(len(pools)):
        begin(pool)
    while running:
        left = deadline + 5 - time.monotonic()
        done, _ = wait(running, timeout=max(left, 0.1), return_when="FIRST_COMPLETED")
        if not done and left <= 0:
            break
        for future in done:
            pool, job = running.pop(future)
            result = future.result() | {"on": "gpu" if pool >= workers else "cpu"}
            if "error" in result and pool >= workers:  # a processor can do what a GPU could not
                queue.append(job)
                continue
            with out.open("a") as file:
                file.write(json.dumps(result) + "\n")
            shown = result.get("error") or f"{100 * result['curve'][-1]['accuracy']:.1f} %, {result['seconds']:.0f} s"
            print(f"{job.case}, {job.spend}, {job.rate:g}, seed {job.seed}, {result['on']}: {shown}", flush=True)
            begin(pool)
    for pool_ in pools:
        for process in (pool_._processes or {}).values():
            process.kill()


def _start(gpu: bool) -> None:
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(1)


def _run(job: Job, root: Path) -> dict[str, Any]:
    try:
        return job.run(root)
    except Exception as error:  # the other runs' results are wanted
        traceback.print_exc()
        return asdict(job) | {"error": f"{type(error).__name__}: {error}"[:300]}
