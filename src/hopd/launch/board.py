"""What the command line and its workers on Ray tell one another. It imports no torch: it is read in processes of Ray
that have no other use for it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hopd.errors import HopdError


class Board:
    """An actor beside the command line."""

    def __init__(self) -> None:
        self._text = ""
        self._signal: int | None = None
        self._starts: Counter[int] = Counter()
        self._errors: list[HopdError] = []

    def write(self, text: str) -> None:
        self._text += text

    def read(self, signum: int | None) -> tuple[bool, str]:
        """Takes the signal that the command line got, and gives whether workers run, and what they wrote."""
        text, self._text, self._signal = self._text, "", signum or self._signal
        return bool(self._starts), text

    def start(self, rank: int) -> int | None:
        """How often this worker was started before; or None, if the run has ended in an error that starting again
        would not help."""
        self._starts[rank] += 1
        return None if self._errors else self._starts[rank] - 1

    def signal(self) -> int | None:
        return self._signal

    def fail(self, error: HopdError) -> None:
        self._errors.append(error)

    def errors(self) -> list[HopdError]:
        return self._errors


def lost(failures: Mapping[int, Exception]) -> str | None:
    """A sentence on the workers that ended without a word, where there are any: others fail in their wake."""
    from ray.exceptions import RayActorError

    causes = {rank: getattr(failure, "health_check_failure", failure) for rank, failure in failures.items()}
    ranks = [str(rank) for rank, cause in sorted(causes.items()) if isinstance(cause, RayActorError)]
    return f"worker {', '.join(ranks)} was lost" if ranks else None


def reporter(board: Any) -> Any:
    """A callback of Ray Train that writes on the board why workers are started again."""
    import ray
    from ray.train import UserCallback

    class Reporter(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            others = (f"worker {rank}: {failure}" for rank, failure in worker_exceptions.items())
            if not ray.get(board.errors.remote()):
                ray.get(board.write.remote(f"ray: {lost(worker_exceptions) or '; '.join(others)}\n"))

    return Reporter()
