"""Names what can go wrong between a run and a server, and counts it."""

import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

import torch

from hopd.processes import Processes


class FaultKind(StrEnum):
    """Names the ways in which a request can fail."""

    REFUSED = "refused"  # no connection
    DROPPED = "dropped"  # the connection ended before the answer did
    TIMEOUT = "timeout"
    BUSY = "busy"  # 429
    SERVER_ERROR = "server_error"  # 5xx
    REJECTED = "rejected"  # any other status: the key, the model name or a sequence is refused
    MALFORMED = "malformed"  # not JSON, or JSON of another form than requested
    WRONG_LENGTH = "wrong_length"
    NOT_FINITE = "not_finite"  # NaN or null in place of a log-prob
    IMPOSSIBLE = "impossible"  # −∞ in place of a log-prob, or the number that stands for it
    OTHER_WEIGHTS = "other_weights"  # not the weights that the run began with, or sent last


class Fault(Exception):
    """Reports a request without a usable answer. `retry_after` is the wait that the server asked for, in seconds."""

    def __init__(self, kind: FaultKind, sentence: str, retry_after: float = 0.0):
        super().__init__(sentence)
        self.kind, self.retry_after = kind, retry_after


@dataclass
class RequestStats:
    """Counts faults by kind and retries since the last metrics. `seconds` adds up the time of failed requests and of
    the waits after them; requests overlap, so it may exceed the time of the clock."""

    faults: Counter[FaultKind] = field(default_factory=Counter)
    retries: int = 0
    seconds: float = 0.0

    def add(self, kind: FaultKind, since: float) -> None:
        """Counts a fault of a request that began at `since`, by `time.monotonic()`."""
        self.faults[kind] += 1
        self.seconds += time.monotonic() - since

    def __add__(self, other: "RequestStats") -> "RequestStats":
        return RequestStats(self.faults + other.faults, self.retries + other.retries, self.seconds + other.seconds)

    def metrics(self, whose: str, processes: Processes) -> dict[str, float]:
        """Returns sums over all processes, by name. With `whose` "teacher", for example: `teacher_retries`,
        `teacher_seconds_lost`, and `teacher_faults_KIND` for each kind that occurred."""
        counts = [float(self.faults[kind]) for kind in FaultKind]
        summed = processes.sum(torch.tensor([self.retries, self.seconds, *counts], dtype=torch.float64))
        retries, seconds, *by_kind = summed.tolist()
        named = {f"{whose}_faults_{kind}": int(n) for kind, n in zip(FaultKind, by_kind, strict=True) if n}
        return {f"{whose}_retries": int(retries), f"{whose}_seconds_lost": seconds, **named}
