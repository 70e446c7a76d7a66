"""Runs what is missing of an experiment, a process for each core, and writes its page."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from hopd.reproduce.experiment import Experiment, table
from hopd.training.files import write_atomically

Log = Callable[[str], None]


def reproduce(experiment: Experiment, work: Path, out: Path, seeds: int | None = None, log: Log = print) -> Path:
    """Results that lie in `work` already are taken as they are, so that an interrupted run goes on. Gives the page."""
    count, folder = seeds or experiment.seeds, work / experiment.name
    jobs = [(variant, seed) for seed in range(count) for variant in experiment.variants()]
    missing = [job for job in jobs if not _result(folder, *job).exists()]
    log(f"{experiment.name}: {len(jobs)} runs, {len(jobs) - len(missing)} of them done before")
    unprepared = sorted({seed for _, seed in missing if not _prepared(folder, seed).exists()})
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        for seeds_at_once in (unprepared[:1], unprepared[1:]):  # the first may make what all seeds share
            _wait(pool, [(_prepare, experiment, folder, seed) for seed in seeds_at_once], log)
        _wait(pool, [(_run, experiment, folder, *job) for job in missing], log)
    results: dict[str, list[dict[str, Any]]] = {variant: [] for variant in experiment.variants()}
    for variant, seed in jobs:
        results[variant].append(json.loads(_result(folder, variant, seed).read_text()))
    out.mkdir(parents=True, exist_ok=True)
    page = experiment.page(results, out)
    spent = sum(result["seconds"] for of_variant in results.values() for result in of_variant)
    spent += sum(json.loads(_prepared(folder, seed).read_text())["seconds"] for seed in range(count))
    content = {"title": page.title, "claims": [asdict(claim) for claim in page.claims], "results": results}
    write_atomically(out / f"{experiment.name}.json", json.dumps(content, ensure_ascii=False))
    path = out / f"{experiment.name}.md"
    write_atomically(path, page.markdown(experiment.name, count, spent, machine()))
    write_atomically(out / "README.md", _index(out))
    return path


def _index(out: Path) -> str:
    """The verdicts of all pages that there are."""
    pages = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))}
    rows = [
        [f"[{page['title']}]({name}.md)", claim["claim"], claim["found"], f"**{claim['verdict']}**"]
        for name, page in pages.items()
        for claim in page["claims"]
    ]
    counted = Counter(claim["verdict"] for page in pages.values() for claim in page["claims"])
    said = ", ".join(f"{count} {verdict}" for verdict, count in counted.items())
    lines = ["# What held", "", f"Written by `hopd reproduce`. Of {len(rows)} claims: {said}.", ""]
    return "\n".join([*lines, table(["page", "the paper's claim", "here", "verdict"], rows)]) + "\n"


def machine() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores ({names[0]})" if names else f"{os.cpu_count()} cores"


def _wait(pool: ProcessPoolExecutor, calls: Sequence[tuple[Any, ...]], log: Log) -> None:
    running = [pool.submit(*call) for call in calls]
    for number, finished in enumerate(as_completed(running), start=1):
        log(f"  {number} of {len(calls)}: {finished.result()}")


def _one_thread() -> None:
    torch.set_num_threads(1)


def _prepare(experiment: Experiment, folder: Path, seed: int) -> str:
    shared = folder / f"seed-{seed}"
    shared.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    experiment.prepare(seed, shared)
    seconds = time.process_time() - started
    write_atomically(_prepared(folder, seed), json.dumps({"seconds": seconds}))
    return f"seed {seed} prepared in {seconds:.0f} s"


def _run(experiment: Experiment, folder: Path, variant: str, seed: int) -> str:
    started = time.process_time()
    result = experiment.run(variant, seed, folder / f"seed-{seed}")
    seconds = time.process_time() - started
    write_atomically(_result(folder, variant, seed), json.dumps(result | {"seconds": seconds}))
    return f"{variant}, seed {seed}: {seconds:.0f} s"


def _prepared(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}" / "prepared.json"


def _result(folder: Path, variant: str, seed: int) -> Path:
    return folder / f"seed-{seed}" / f"{variant}.json"
