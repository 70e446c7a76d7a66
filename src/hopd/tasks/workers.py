"""Runs a check in processes that can be killed, several at once.

A library's time-out does not help here: a signal's handler waits until the interpreter is free, which it never is while
it raises a huge integer to a power. Pools of `multiprocessing` import the main module again, which runs a script that
has no guard a second time; these processes import the check alone.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from hopd.errors import TaskError
from hopd.tasks.outcome import Outcome
from hopd.tasks.worker import PATIENCE

MOST = 8  # processes of one check
START_SECONDS = 300.0  # a check of your own may import much
GRACE = 5.0  # seconds that a process which forks may be later than its fork
GIVE_UP = 16  # answers, all of them too late, after which the rest is not tried


class Worker:
    """Is one process. It has one call at a time, to be answered before `deadline`; `end` kills it."""

    def __init__(self, setup: bytes):
        self.connection, theirs = Pipe()
        lifeline, ours = os.pipe()
        path = [os.path.abspath(place) for place in sys.path]
        serve = f"from hopd.tasks.worker import serve; serve({theirs.fileno()}, {lifeline})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:] = {path}; {serve}"],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), lifeline),
            process_group=0,  # what a check starts is killed with it
        )
        theirs.close()
        os.close(lifeline)
        self.end = weakref.finalize(self, _end, self.process, self.connection, ours, os.getpid())
        self.ready, self.deadline = False, 0.0
        self._send(setup)

    def ask(self, index: int, call: bytes, seconds: float) -> None:
        """Sends call number `index`, or as soon as the process is ready."""
        self.index, self._call, self.seconds = index, call, seconds
        self.deadline = time.monotonic() + START_SECONDS
        if self.ready:
            self._start_call()

    def hear(self) -> Outcome | None:
        """Returns the outcome that has arrived, or None if the process has only become ready."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            code = self.process.wait()
            self.end()
            return Outcome.ended(code)
        if isinstance(message, Outcome):
            return message
        self.ready = True
        self._start_call()
        return None

    def _start_call(self) -> None:
        self.deadline = time.monotonic() + self.seconds
        self._send(self._call)

    def _send(self, message: bytes) -> None:
        with suppress(OSError):  # it has died, and `hear` will say so
            self.connection.send_bytes(message)


class Workers:
    """Runs `check` in at most `count` processes, which start when they are needed and are kept until `close`.

    `check` can be pickled, or is a name, module:function, that the processes alone import. A call that takes longer
    than `seconds` is killed. `memory` limits the bytes of a process. With `forks` a process forks what may be killed,
    so that the next call need not wait for its imports, and the seconds are the processor's. Can be used in any thread.
    """

    def __init__(self, check: Callable[..., Any] | str, seconds: float, memory: int = 0, forks: bool = False):
        self.check, self.seconds = check, seconds
        self._setup = (check, memory, seconds if forks else None)
        self._killed_after = PATIENCE * seconds + GRACE if forks else seconds
        self.count = _cores()
        self._idle: list[Worker] = []
        self._owner, self._worked = os.getpid(), False

    def run(self, calls: Sequence[tuple[Any, ...]]) -> list[Outcome]:
        """Returns the outcome of each call. Raises `TaskError` if no process could ever load the check."""
        outcomes: dict[int, Outcome] = {}
        todo, busy, late = deque(range(len(calls))), dict[Connection, Worker](), 0
        try:
            while todo or busy:
                while todo and len(busy) < self.count:
                    self._start(todo.popleft(), calls, busy, outcomes)
                for connection in self._due(busy):
                    worker = busy[connection]
                    outcome = worker.hear() if connection.poll() else self._too_late(worker)
                    if outcome is not None:
                        del busy[connection]
                        outcomes[worker.index] = outcome
                        late += outcome.late or not worker.end.alive
                        self._free(worker, outcome)
                if late == len(outcomes) >= GIVE_UP:
                    rest = Outcome.failed(f"it was not tried, since none of {late} answers before could be checked")
                    outcomes |= {todo.popleft(): rest for _ in range(len(todo))}
        finally:  # an interruption may come at any line
            for worker in busy.values():
                worker.end()
        return [outcomes[index] for index in range(len(calls))]

    def close(self) -> None:
        """Ends the processes that have nothing to do. Later calls start new ones."""
        while self._idle:
            self._idle.pop().end()

    def _start(
        self, index: int, calls: Sequence[Any], busy: dict[Connection, Worker], outcomes: dict[int, Outcome]
    ) -> None:
        try:
            call = pickle.dumps(calls[index])
            worker = self._take()
        except Exception as error:  # an answer that cannot be pickled, or a system that starts no process
            outcomes[index] = Outcome.failed(error)
            return
        busy[worker.connection] = worker
        worker.ask(index, call, self._killed_after)

    def _take(self) -> Worker:
        if self._owner != os.getpid():  # a fork has the parent's list, and not its processes
            self._idle, self._owner = [], os.getpid()
        while self._idle:
            worker = self._idle.pop()
            if worker.process.poll() is None:
                return worker
            worker.end()
        return Worker(pickle.dumps(self._setup))

    def _free(self, worker: Worker, outcome: Outcome) -> None:
        self._worked |= worker.ready
        if not self._worked:
            worker.end()
            raise TaskError(f"the check cannot be loaded in a process of its own: {outcome.failure}")
        if worker.ready and worker.end.alive and len(self._idle) < self.count:
            self._idle.append(worker)
        else:
            worker.end()

    def _due(self, busy: dict[Connection, Worker]) -> list[Connection]:
        """Waits until a process has answered or is too late, and returns the connections of those."""
        first = min((worker.deadline for worker in busy.values()), default=0.0)
        ready = wait(list(busy), max(0.0, first - time.monotonic())) if busy else []
        now = time.monotonic()
        return [each for each, worker in busy.items() if each in ready or worker.deadline <= now]

    def _too_late(self, worker: Worker) -> Outcome:
        worker.end()
        return Outcome.too_late(self.seconds) if worker.ready else Outcome.failed("its process did not start")


def _end(process: subprocess.Popen[bytes], connection: Connection, lifeline: int, owner: int) -> None:
    """Kills a process with all that it has started, and leaves no zombie."""
    if os.getpid() != owner:
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    connection.close()
    os.close(lifeline)


def _cores() -> int:
    """Returns how many processes this one may start, where others of the same run start theirs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(MOST, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
