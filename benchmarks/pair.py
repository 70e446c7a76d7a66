"""Two processes that take turns: whatever slows the machine down slows both."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Side:
    """A module of `benchmarks/sides`, its case, and the Python that runs it."""

    name: str
    case: dict[str, Any]
    python: str = sys.executable


@dataclass(frozen=True)
class Measured:
    """What both sides said in each of their turns; the first, which warms up, is left out."""

    ours: list[dict[str, Any]]
    theirs: list[dict[str, Any]]

    @property
    def ratio(self) -> float:
        """Median of theirs over median of ours, in seconds for the same work: above 1, ours is faster."""
        return self.seconds("theirs") / self.seconds("ours")

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and highest ratio of two turns that followed one another."""
        ratios = [b["seconds"] / a["seconds"] for a, b in zip(self.ours, self.theirs, strict=True)]
        return min(ratios), max(ratios)

    def seconds(self, side: str) -> float:
        return float(statistics.median(turn["seconds"] for turn in getattr(self, side)))

    def last(self, side: str, key: str) -> Any:
        return getattr(self, side)[-1].get(key)


def measure(ours: Side, theirs: Side, turns: int = 5) -> Measured:
    """Alternates, after one turn of each to warm up. Raises `RuntimeError` with the end of a side's stderr."""
    with ExitStack() as stack:
        first, second = stack.enter_context(_process(ours)), stack.enter_context(_process(theirs))
        taken = [(first(), second()) for _ in range(turns + 1)][1:]
    return Measured([a for a, _ in taken], [b for _, b in taken])


@contextmanager
def _process(side: Side) -> Iterator[Any]:
    command = [side.python, "-m", "benchmarks.turns", side.name, json.dumps(side.case)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    to_it, from_it = process.stdin, process.stdout
    assert to_it
    assert from_it

    def heard() -> dict[str, Any]:
        line = from_it.readline()
        if not line:
            raise RuntimeError(f"the side {side.name} ended early, with exit code {process.wait()}; see above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def turn() -> dict[str, Any]:
        to_it.write("\n")
        to_it.flush()
        measured = heard()
        heard()  # it is ready for the next
        return measured

    try:
        heard()  # it is ready
        yield turn
    finally:
        to_it.close()
        process.wait()
