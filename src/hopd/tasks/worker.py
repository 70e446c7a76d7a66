"""Runs a check in a process of its own. This file is what that process imports: it must stay light."""

import fcntl
import os
import resource
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from hopd import plugin
from hopd.tasks.outcome import Outcome, attempt

PATIENCE = 2  # times as many seconds by the clock as of the processor


def serve(connection: int, lifeline: int) -> None:
    """Receives a check and then its arguments, call by call, and sends an `Outcome` for each, until the other end of
    `connection` is closed. `lifeline` is a pipe that nobody writes to: it closes when the parent dies."""
    _die_with_parent(lifeline)
    with Connection(connection) as calls:
        try:
            check, memory, fork_seconds = calls.recv()
            if memory:
                _limit_memory(memory)
            check = plugin.load(check, "check") if isinstance(check, str) else check
        except (Exception, SystemExit) as error:
            calls.send(Outcome.failed(error))
            return
        calls.send(None)  # ready
        _answer(calls, Fork(check, fork_seconds).run if fork_seconds else lambda *call: attempt(check, *call))


class Fork:
    """Runs a check in a fork of this process, which is replaced when a call takes longer than `seconds` of the
    processor, or `PATIENCE` times that by the clock. The check's imports are there at once. It is for modules that
    start no thread and use no GPU."""

    def __init__(self, check: Callable[..., Any], seconds: float):
        self.check, self.seconds = check, seconds
        self.pid = 0

    def run(self, *call: Any) -> Outcome:
        """Returns the outcome of a call."""
        if not self.pid:
            self._fork()
        try:
            self.connection.send(call)
            if self.connection.poll(PATIENCE * self.seconds):
                outcome: Outcome = self.connection.recv()
                return outcome
        except (EOFError, OSError):
            pass  # it has ended
        else:
            os.kill(self.pid, signal.SIGPROF)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.connection.close()
        self.pid = 0
        return Outcome.too_late(self.seconds) if code == -signal.SIGPROF else Outcome.ended(code)

    def _fork(self) -> None:
        self.connection, theirs = Pipe()
        self.pid = os.fork()
        if not self.pid:
            self.connection.close()
            _answer(theirs, self._within_time)
            os._exit(0)
        theirs.close()

    def _within_time(self, *call: Any) -> Outcome:
        signal.setitimer(signal.ITIMER_PROF, self.seconds)  # the kernel ends the process, whatever Python does
        outcome = attempt(self.check, *call)
        signal.setitimer(signal.ITIMER_PROF, 0)
        return outcome


def _answer(calls: Connection, run: Callable[..., Outcome]) -> None:
    """Runs call by call until the other end is closed."""
    while True:
        try:
            arguments = calls.recv()
        except EOFError:
            return
        except Exception as error:  # an answer that cannot be unpickled here
            calls.send(Outcome.failed(error))
            continue
        calls.send(run(*arguments))


def _die_with_parent(lifeline: int) -> None:
    """Asks the kernel to end this process, and what it has started, when the lifeline closes: a check that computes
    with huge integers never returns to Python's own handlers and threads."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # the parent has died before
        os._exit(1)


def _limit_memory(size: int) -> None:
    """Makes requests for more memory than `size` bytes fail, where the system can."""
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))
