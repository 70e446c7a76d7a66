"""`make gpu`, or `python -m benchmarks.gpu [STAGE ...]`: hopd on one GPU, in less than eight minutes.

Writes results/gpu.json and results/gpu.md. A stage that fails is reported, and the others go on. `--tiny` is a dry run
on a CPU with tiny shapes, which shows that the stages run and says nothing about speed.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu import attention, command_line, decode, parity, roof, trl, update
from benchmarks.gpu.place import Place
from benchmarks.gpu.record import Record

RESULTS = Path(__file__).parents[1] / "results"
STAGES: dict[str, Callable[[Place, Record], None]] = {
    "roof": roof.run,
    "parity": parity.run,
    "command line": command_line.run,
    "decode": decode.run,
    "update": update.run,
    "attention": attention.run,
    "trl": trl.run,
}
SECONDS = 480.0  # in all; no stage begins in the last half minute


def main(arguments: Sequence[str] | None = None) -> bool:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"among {', '.join(STAGES)}; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of gpu.json and gpu.md")
    parser.add_argument("--tiny", action="store_true", help="dry run on a CPU")
    wanted = parser.parse_args(arguments)
    if unknown := set(wanted.stages) - set(STAGES):
        parser.error(f"there is no stage {', '.join(sorted(unknown))}; the stages are {', '.join(STAGES)}")
    place, started = Place.of(wanted.tiny), time.monotonic()
    record = Record(wanted.out, place)
    for name, stage in STAGES.items():
        if wanted.stages and name not in wanted.stages:
            continue
        if time.monotonic() - started > SECONDS - 30:
            record.add(name, skipped="no time left")
            continue
        try:
            stage(place, record)
        except Exception as error:  # whatever it is: the other stages' results are wanted
            traceback.print_exc()
            record.add(name, failed=f"{type(error).__name__}: {error}"[:300])
        record.write()
        place.empty()
    return record.passed


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
