"""How long to wait after a failed attempt: exponential back-off with jitter, until a deadline.

It knows neither requests nor servers: who is asked next, and what is counted, is decided where it is used. (Libraries
for retries own the loop around one call; here a wait belongs to a server, and another one may be asked at once.)
"""

import random
import time

LONGEST_WAIT = 30.0  # seconds between two attempts, unless the server asks for more


class Backoff:
    """Counts the failed attempts at one thing. `first` is the longest wait after the first of them, `deadline` the
    seconds from now within which the last attempt may begin."""

    def __init__(self, first: float, deadline: float):
        self.first, self.deadline, self.failed = first, time.monotonic() + deadline, 0

    def fail(self, retry_after: float = 0.0) -> float:
        """Counts one more failure and gives the seconds to wait: at least `retry_after`, which the server asked for."""
        self.failed += 1
        longest = min(LONGEST_WAIT, self.first * 2.0 ** min(self.failed - 1, 30))
        # A generator of its own: the seeds of a run stay untouched, and clients that failed together part.
        return max(retry_after, longest * random.Random().uniform(0.5, 1.0))

    def allows(self, wait: float) -> bool:
        """Whether an attempt that begins `wait` seconds from now is still within the deadline."""
        return time.monotonic() + wait <= self.deadline
