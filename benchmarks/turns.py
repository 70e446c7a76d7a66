"""One side of a pair: a process that does one iteration of its work whenever it is asked, and says what it took.

`python -m benchmarks.turns SIDE CASE` runs the function `run(case, turns)` of `benchmarks/sides/SIDE.py`; CASE is JSON.
Requests and answers are lines on stdin and stdout.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any


class Turns:
    """Iterating waits for the next request; `answer` ends the turn, whose seconds it adds."""

    def __init__(self) -> None:
        # Libraries print too: they get stderr, the answers have the real stdout.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._started = 0.0

    def __iter__(self) -> Iterator[None]:
        return self

    def __next__(self) -> None:
        self._say({"ready": True})
        if not sys.stdin.readline():
            raise StopIteration
        self._started = time.perf_counter()

    def answer(self, **measured: Any) -> None:
        self._say({"seconds": time.perf_counter() - self._started, "peak_bytes": peak_bytes()} | measured)

    def _say(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self._out, flush=True)


def peak_bytes() -> int:
    """The most memory that this process has had, resident."""
    with open("/proc/self/status") as status:
        return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    side, case = sys.argv[1], json.loads(sys.argv[2])
    importlib.import_module(f"benchmarks.sides.{side}").run(case, Turns())
