"""Runs what experiments still lack, in one process for each core, and writes their pages."""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from experiments.experiment import Experiment, table
from hopd.run.files import write_atomically

Log = Callable[[str], None]


def reproduce(
    experiments: Sequence[Experiment], work: Path, out: Path, seeds: int | None = None, log: Log = print
) -> list[Path]:
    """Runs the experiments and returns their pages. Results that are already in `work` are kept, so an interrupted run
    continues.

    All experiments share the processes, so that no core waits for the last run of one of them. Raises an
    `ExceptionGroup` of those that failed, after the others have ended.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        ended = asyncio.run(_Runs(pool, work, out, seeds, log).of_all(experiments))
    failed = {one.name: error for one, error in zip(experiments, ended, strict=True) if isinstance(error, Exception)}
    if failed:
        raise ExceptionGroup(f"failed: {', '.join(failed)}; what the others found is kept", list(failed.values()))
    return [one for one in ended if isinstance(one, Path)]


@dataclass(frozen=True)
class _Runs:
    pool: Executor
    work: Path
    out: Path
    seeds: int | None
    log: Log

    async def of_all(self, experiments: Sequence[Experiment]) -> Sequence[Path | BaseException]:
        return await asyncio.gather(*map(self.of_experiment, experiments), return_exceptions=True)

    async def of_experiment(self, experiment: Experiment) -> Path:
        folder, seeds = self.work / experiment.name, range(self.seeds or experiment.seeds)
        jobs = [(variant, seed) for seed in seeds for variant in experiment.variants()]
        missing = [job for job in jobs if not _result(folder, *job).exists()]
        self.log(f"{experiment.name}: {len(jobs)} runs, {len(jobs) - len(missing)} of them done before")
        if missing:  # the first seed's preparation may make what all seeds share
            await self.prepare(experiment, folder, 0)
        await asyncio.gather(*(self.of_seed(experiment, folder, seed) for seed in seeds))
        return _write(experiment, folder, len(seeds), self.out)

    async def of_seed(self, experiment: Experiment, folder: Path, seed: int) -> None:
        if missing := [v for v in experiment.variants() if not _result(folder, v, seed).exists()]:
            await self.prepare(experiment, folder, seed)
            await asyncio.gather(*(self.call(_run, experiment, folder, seed, variant) for variant in missing))

    async def prepare(self, experiment: Experiment, folder: Path, seed: int) -> None:
        if not _prepared(folder, seed).exists():
            await self.call(_prepare, experiment, folder, seed)

    async def call(self, work: Callable[..., str], experiment: Experiment, *arguments: Any) -> None:
        done = await asyncio.get_running_loop().run_in_executor(self.pool, work, experiment, *arguments)
        self.log(f"  {experiment.name}: {done}")


def _write(experiment: Experiment, folder: Path, seeds: int, out: Path) -> Path:
    """Writes page, figures and numbers of an experiment whose results are complete."""
    results: dict[str, list[dict[str, Any]]] = {
        variant: [json.loads(_result(folder, variant, seed).read_text()) for seed in range(seeds)]
        for variant in experiment.variants()
    }
    out.mkdir(parents=True, exist_ok=True)
    page = experiment.page(results, out)
    spent = sum(result["seconds"] for of_variant in results.values() for result in of_variant)
    spent += sum(json.loads(_prepared(folder, seed).read_text())["seconds"] for seed in range(seeds))
    content = {"title": page.title, "claims": [asdict(claim) for claim in page.claims], "results": results}
    write_atomically(out / f"{experiment.name}.json", json.dumps(content, ensure_ascii=False))
    path = out / f"{experiment.name}.md"
    write_atomically(path, page.markdown(experiment.name, seeds, spent, machine()))
    write_atomically(out / "README.md", _index(out))
    return path


def _index(out: Path) -> str:
    """Writes the verdicts of all pages in `out` as one table."""
    pages = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))}
    rows = [
        [f"[{page['title']}]({name}.md)", claim["claim"], claim["found"], f"**{claim['verdict']}**"]
        for name, page in pages.items()
        for claim in page["claims"]
    ]
    counted = Counter(claim["verdict"] for page in pages.values() for claim in page["claims"])
    counts = ", ".join(f"{count} {verdict}" for verdict, count in counted.items())
    lines = ["# What held", "", f"Written by `python -m experiments`. Of {len(rows)} claims: {counts}.", ""]
    return "\n".join([*lines, table(["page", "the paper's claim", "here", "verdict"], rows)]) + "\n"


def machine() -> str:
    """Names the processor and its number of cores."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores ({names[0]})" if names else f"{os.cpu_count()} cores"


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


def _run(experiment: Experiment, folder: Path, seed: int, variant: str) -> str:
    started = time.process_time()
    result = experiment.run(variant, seed, folder / f"seed-{seed}")
    seconds = time.process_time() - started
    write_atomically(_result(folder, variant, seed), json.dumps(result | {"seconds": seconds}))
    return f"{variant}, seed {seed}: {seconds:.0f} s"


def _prepared(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}" / "prepared.json"


def _result(folder: Path, variant: str, seed: int) -> Path:
    return folder / f"seed-{seed}" / f"{variant}.json"
