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
WIDEN_SECONDS = 0.25
START_SECONDS = 300.0  # a check of your own may import much
GRACE = 5.0  # seconds that a process which forks may be later than its fork
GIVE_UP = 16  # answers, all of them too late, after which the rest is not tried


class Worker:
    """Is one process. It has one call at a time, to be answered before `deadline`; `end` kills it."""

    def __init__(self, setup: bytes, seconds: float):
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
        self.seconds, self.ready, self.deadline = seconds, False, 0.0
        self._send(setup)

    def ask(self, index: int, call: bytes) -> None:
        """Sends call number `index`, or as soon as the process is ready."""
        self.index, self._call = index, call
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

    def too_late(self) -> Outcome:
        """Kills the process, and returns the outcome of its call."""
        self.end()
        return Outcome.too_late(self.seconds) if self.ready else Outcome.failed("its process did not start")

    def _start_call(self) -> None:
        self.deadline = time.monotonic() + self.seconds
        self._send(self._call)

    def _send(self, message: bytes) -> None:
        with suppress(OSError):  # it has died, and `hear` will say so
            self.connection.send_bytes(message)


class Workers:
    """Runs `check` in processes that start when they are needed and are kept until `close`: one, and another each time
    that `WIDEN_SECONDS` have passed and calls are left, up to `count`.

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
        return _Round(self, calls).run()

    def close(self) -> None:
        """Ends the processes that have nothing to do. Later calls start new ones."""
        while self._idle:
            self._idle.pop().end()

    def take(self) -> Worker:
        """Returns a process that has nothing to do, or starts one."""
        if self._owner != os.getpid():  # a fork has the parent's list, and not its processes
            self._idle, self._owner = [], os.getpid()
        while self._idle:
            worker = self._idle.pop()
            if worker.process.poll() is None:
                return worker
            worker.end()
        return Worker(pickle.dumps(self._setup), self._killed_after)

    def give_back(self, worker: Worker, outcome: Outcome) -> None:
        """Keeps a process for the next call, unless it has ended."""
        self._worked |= worker.ready
        if worker.ready and worker.end.alive and len(self._idle) < self.count:
            self._idle.append(worker)
        else:
            worker.end()
        if not self._worked:
            raise TaskError(f"the check cannot be loaded in a process of its own: {outcome.failure}")


class _Round:
    """Runs the calls of one `Workers.run`."""

    def __init__(self, workers: Workers, calls: Sequence[tuple[Any, ...]]):
        self.workers, self.calls = workers, calls
        self.todo = deque(range(len(calls)))
        self.busy: dict[Connection, Worker] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.began: float | None = None  # when the first process was ready

    def run(self) -> list[Outcome]:
        try:
            while self.todo or self.busy:
                self._start()
                for connection in self._due():
                    self._hear(connection)
                self._give_up()
        finally:  # an interruption may come at any line
            for worker in self.busy.values():
                worker.end()
        return [self.outcomes[index] for index in range(len(self.calls))]

    def _start(self) -> None:
        """Gives calls to free processes: to one, and to another each time that `WIDEN_SECONDS` have passed."""
        waited = 0.0 if self.began is None else time.monotonic() - self.began
        while self.todo and len(self.busy) < min(self.workers.count, 1 + waited // WIDEN_SECONDS):
            index = self.todo.popleft()
            try:
                call = pickle.dumps(self.calls[index])
                worker = self.workers.take()
            except Exception as error:  # an answer that cannot be pickled, or a system that starts no process
                self.outcomes[index] = Outcome.failed(error)
                continue
            self.busy[worker.connection] = worker
            worker.ask(index, call)
            self._note_beginning(worker)

    def _due(self) -> list[Connection]:
        """Waits a little, and returns the connections of processes that have answered or are too late."""
        first = min((worker.deadline for worker in self.busy.values()), default=0.0)
        longest = max(0.0, first - time.monotonic())
        ready = wait(list(self.busy), min(WIDEN_SECONDS, longest) if self.todo else longest)
        now = time.monotonic()
        return [each for each, worker in self.busy.items() if each in ready or worker.deadline <= now]

    def _hear(self, connection: Connection) -> None:
        worker = self.busy[connection]
        outcome = worker.hear() if connection.poll() else worker.too_late()
        self._note_beginning(worker)
        if outcome is not None:
            del self.busy[connection]
            self.outcomes[worker.index] = outcome
            self.workers.give_back(worker, outcome)

    def _note_beginning(self, worker: Worker) -> None:
        if worker.ready and self.began is None:
            self.began = time.monotonic()

    def _give_up(self) -> None:
        """Leaves the rest of the calls if the first were all too late: a check that hangs would take days."""
        if len(self.outcomes) >= GIVE_UP and all(outcome.late for outcome in self.outcomes.values()):
            reason = Outcome.failed(f"it was not tried, since the {len(self.outcomes)} answers before took too long")
            self.outcomes |= dict.fromkeys(self.todo, reason)
            self.todo.clear()


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
