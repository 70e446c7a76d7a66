"""Computes the wait after a failed attempt: exponential back-off with jitter, until a deadline.

It knows neither requests nor servers: its user decides whom to ask next. (Retry libraries own the loop around one call;
here a wait belongs to one server, and another server may be asked at once.)
"""

import random
import time

LONGEST_WAIT = 30.0  # seconds between two attempts, unless the server asks for more


class Backoff:
    """Counts failed attempts at one request. `first` is the longest wait after the first failure, in seconds; no
    attempt may begin later than `deadline` seconds from now."""

    def __init__(self, first: float, deadline: float):
        self.first, self.deadline, self.failed = first, time.monotonic() + deadline, 0

    def fail(self, retry_after: float = 0.0) -> float:
        """Counts a failure and returns the seconds to wait, at least `retry_after`, the server's own request."""
        self.failed += 1
        longest = min(LONGEST_WAIT, self.first * 2.0 ** min(self.failed - 1, 30))
        # A generator of its own leaves the run's seeds untouched; jitter separates clients that failed together.
        return max(retry_after, longest * random.Random().uniform(0.5, 1.0))

    def allows(self, wait: float) -> bool:
        """Tells whether an attempt `wait` seconds from now is still within the deadline."""
        return time.monotonic() + wait <= self.deadline
