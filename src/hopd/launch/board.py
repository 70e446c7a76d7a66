"""Passes messages between the command line and its Ray workers.

It imports no torch, because Ray also loads it in processes that train nothing.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hopd.errors import HopdError


class Board:
    """Runs as a Ray actor on the command line's node, and holds output, signals, starts and errors of the workers."""

    def __init__(self) -> None:
        self._text = ""
        self._signal: int | None = None
        self._starts: Counter[int] = Counter()
        self._errors: list[HopdError] = []

    def write(self, text: str) -> None:
        """Appends output for the command line to print."""
        self._text += text

    def read(self, signum: int | None) -> tuple[bool, str]:
        """Stores the command line's signal. Returns whether workers have started, and their new output."""
        text, self._text, self._signal = self._text, "", signum or self._signal
        return bool(self._starts), text

    def start(self, rank: int) -> int | None:
        """Counts a start of this worker and returns the number of earlier ones, or None if the run has failed with an
        error that a restart would not fix."""
        self._starts[rank] += 1
        return None if self._errors else self._starts[rank] - 1

    def signal(self) -> int | None:
        """Returns the signal that the command line received, if any."""
        return self._signal

    def fail(self, error: HopdError) -> None:
        """Stores an error that a restart would not fix."""
        self._errors.append(error)

    def errors(self) -> list[HopdError]:
        """Returns the errors of all workers, the first one first."""
        return self._errors


def lost(failures: Mapping[int, Exception]) -> str | None:
    """Returns a sentence about the workers whose process died, or None: other workers fail only as a consequence."""
    from ray.exceptions import RayActorError

    causes = {rank: getattr(failure, "health_check_failure", failure) for rank, failure in failures.items()}
    ranks = [str(rank) for rank, cause in sorted(causes.items()) if isinstance(cause, RayActorError)]
    return f"worker {', '.join(ranks)} was lost" if ranks else None


def reporter(board: Any) -> Any:
    """Returns a Ray Train callback that writes to the board why workers are restarted."""
    import ray
    from ray.train import UserCallback

    class Reporter(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            others = (f"worker {rank}: {failure}" for rank, failure in worker_exceptions.items())
            if not ray.get(board.errors.remote()):
                ray.get(board.write.remote(f"ray: {lost(worker_exceptions) or '; '.join(others)}\n"))

    return Reporter()
