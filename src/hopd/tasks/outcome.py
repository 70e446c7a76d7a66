"""An outcome is what checking one response gave: a score from 0 to 1, or a failure, which counts as 0."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hopd.errors import described, shown

TRIES = 2


@dataclass(frozen=True)
class Outcome:
    """Holds a score, and for a check that gave none the reason in words; the score is 0 then. `late` says that it was
    killed after its time."""

    score: float
    failure: str | None = None
    late: bool = False

    @classmethod
    def failed(cls, reason: object) -> "Outcome":
        """Returns the outcome of a check that gave no score. An exception is named with its type."""
        return cls(0.0, described(reason) if isinstance(reason, BaseException) else str(reason))

    @classmethod
    def too_late(cls, seconds: float) -> "Outcome":
        """Returns the outcome of a check that was killed."""
        return cls(0.0, f"it took longer than {seconds:g} s", late=True)

    @classmethod
    def ended(cls, code: int) -> "Outcome":
        """Returns the outcome of a check whose process ended with this exit code; −n is signal n."""
        return cls.failed("its process ended, " + (f"by signal {-code}" if code < 0 else f"with code {code}"))

    @classmethod
    def of(cls, value: Any) -> "Outcome":
        """Reads what a check returned: a number from 0 to 1, of Python, numpy or torch. Text is no number."""
        try:
            score = None if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, RuntimeError):
            score = None
        if score is None or not 0 <= score <= 1:  # NaN compares as false
            return cls.failed(f"it returned {shown(value)}, and a score is a number from 0 to 1")
        return cls(score)


def attempt(check: Callable[..., Any], *arguments: Any) -> Outcome:
    """Calls a check. One that raises is called once more, and has failed if it raises again."""
    failure = Outcome.failed("it was not called")
    for _ in range(TRIES):
        try:
            return Outcome.of(check(*arguments))
        except (Exception, SystemExit) as error:
            failure = Outcome.failed(error)
    return failure
