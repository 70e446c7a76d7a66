"""What can go wrong between a run and a server, and how often it did."""

import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

import torch

from hopd.processes import Processes


class FaultKind(StrEnum):
    REFUSED = "refused"  # no connection
    DROPPED = "dropped"  # the connection ended before the answer did
    TIMEOUT = "timeout"
    BUSY = "busy"  # 429
    SERVER_ERROR = "server_error"  # 5xx
    REJECTED = "rejected"  # any other status: a key, a model name or a sequence that it does not take
    MALFORMED = "malformed"  # no JSON, or not the JSON that was asked for
    WRONG_LENGTH = "wrong_length"
    NOT_FINITE = "not_finite"  # NaN, null or infinite in place of a log-prob
    OTHER_WEIGHTS = "other_weights"  # not those that the run began with, or last sent


class Fault(Exception):
    """One request that gave no answer. `retry_after` is what the server asked for, in seconds."""

    def __init__(self, kind: FaultKind, sentence: str, retry_after: float = 0.0):
        super().__init__(sentence)
        self.kind, self.retry_after = kind, retry_after


@dataclass
class Losses:
    """Since the last metrics: faults by kind, retries, and seconds of requests that failed and of the waiting after
    them, added up over requests (which wait side by side)."""

    faults: Counter[FaultKind] = field(default_factory=Counter)
    retries: int = 0
    seconds: float = 0.0

    def add(self, kind: FaultKind, since: float) -> None:
        self.faults[kind] += 1
        self.seconds += time.monotonic() - since

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(self.faults + other.faults, self.retries + other.retries, self.seconds + other.seconds)

    def metrics(self, whose: str, processes: Processes) -> dict[str, float]:
        """Sums over the processes, by name. Of `whose` servers, "teacher" for example: `teacher_retries`,
        `teacher_seconds_lost`, and `teacher_faults_KIND` of the kinds that there were."""
        counts = [float(self.faults[kind]) for kind in FaultKind]
        summed = processes.sum(torch.tensor([self.retries, self.seconds, *counts], dtype=torch.float64))
        retries, seconds, *by_kind = summed.tolist()
        named = {f"{whose}_faults_{kind}": int(n) for kind, n in zip(FaultKind, by_kind, strict=True) if n}
        return {f"{whose}_retries": int(retries), f"{whose}_seconds_lost": seconds, **named}
