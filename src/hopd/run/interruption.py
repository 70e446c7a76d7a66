"""Stops a run on SIGTERM or Ctrl-C: it abandons the current step, saves the complete ones, and exits."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hopd.errors import Interrupted
from hopd.processes import Processes


class Interruption:
    """Makes SIGTERM and SIGINT, while it is entered, raise `Interrupted`, at once inside `interruptible` and at its
    next entry otherwise. Several processes (`together`) must stop at the same step: they raise it in `agree` alone.

    Python delivers signals to the main thread alone: a run in another thread is stopped by `tell`.
    """

    def __init__(self, together: bool = False):
        self.together = together
        self.signal: int | None = None
        self._interruptible = False

    def __enter__(self) -> "Interruption":
        taken = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        self._previous = {s: signal.signal(s, self._receive) for s in taken}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets a signal end the block at once: nothing inside changes what outlives the step."""
        self._interruptible = not self.together
        self._raise_if_interruptible()
        try:
            yield
        finally:
            self._interruptible = False

    def agree(self, processes: Processes) -> None:
        """Raises between two steps, on every process if any was told to stop."""
        if self.together and processes.total(float(self.signal is not None)):
            raise Interrupted(self.signal or signal.SIGTERM)

    def tell(self, signum: int) -> None:
        """Acts as if the signal had come, from any thread; raises nothing here."""
        self.signal = signum

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.tell(signum)
        self._raise_if_interruptible()

    def _raise_if_interruptible(self) -> None:
        if self.signal is not None and self._interruptible:
            self._interruptible = False
            raise Interrupted(self.signal)
