"""Shows a person how a run goes: a live line in a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hopd.horizon import Decision


class Progress:
    """Shows step, horizon and why it changed, KL, tokens a second, stop rate, time left."""

    def __init__(self, quiet: bool = False, console: Console | None = None, every_seconds: float = 5.0):
        self.console = console or Console(quiet=quiet, highlight=False)
        self.every_seconds = every_seconds
        self._live: Live | None = None
        self._tokens: int | None = None
        self._alarmed: set[str] = set()
        self._evaluating = 0.0  # seconds of evaluations since the block began

    @contextmanager
    def run(self, name: str, first: int, total: int) -> Iterator[None]:
        """Shows one run, of steps `first` to `total`, until the block ends."""
        self._name, self._first, self._total = name, first, total
        self._started, self._printed, self._tokens = time.perf_counter(), float("-inf"), None
        self._evaluating = 0.0
        if first >= total:
            self.note(f"{name}: nothing left to do, {first} of {total} steps are done")
        elif first:
            self.note(f"{name}: resumed after step {first} of {total}")
        if not self.console.is_terminal:
            yield
            return
        with Live(Text(f"{name}: step {first} of {total}"), console=self.console, refresh_per_second=8) as self._live:
            yield
        self._live = None

    def step(self, metrics: dict[str, Any], decision: Decision, alarms: Mapping[str, str]) -> None:
        """Shows a complete step; where there is no terminal, not more often than every few seconds. Of the alarms, by
        what they are about, one that persists is shown once."""
        for name, alarm in alarms.items():
            if name not in self._alarmed:
                self.note(alarm)
        self._alarmed = set(alarms)
        if decision.tokens != self._tokens:
            if self._tokens is None or not self._grows_steadily(decision.tokens):
                self.note(f"step {metrics['step']}: horizon {decision.reason}")
            self._tokens = decision.tokens
        line = self._line(metrics)
        if self._live:
            self._live.update(Text(line))
        elif time.perf_counter() - self._printed >= self.every_seconds or metrics["step"] == self._total:
            self._printed = time.perf_counter()
            self.console.print(line, markup=False, soft_wrap=True)

    def evaluation(self, text: str, seconds: float) -> None:
        """Prints an evaluation, and leaves its seconds out of the time that the steps have left."""
        self._evaluating += seconds
        self.note(text)

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        self.console.print(f"{text}", markup=False, soft_wrap=True)

    def _grows_steadily(self, tokens: int) -> bool:
        """Tells whether a horizon grows a little at every step: the live line shows that, notes would hide the rest."""
        assert self._tokens is not None
        return 0 < tokens - self._tokens <= 0.25 * self._tokens

    def _line(self, m: dict[str, Any]) -> str:
        done = m["step"] - self._first
        training = time.perf_counter() - self._started - self._evaluating
        left = duration(training / done * (self._total - m["step"]))
        left += " and evaluations left" if self._evaluating else " left"
        speed = m["generated_tokens"] / m["seconds"] if m["seconds"] else 0.0
        learnt = f"KL estimate {m['reverse_kl']:.4f}  " if m["rollouts"] else ""
        learnt += f"loss {m['loss']:.4f}" if "loss" in m else "all rollouts go on"
        stopped = f"  stop rate {100 * m['stop_rate']:.0f} %" if m["rollouts"] else ""
        return (
            f"{self._name}: step {m['step']}/{self._total}  horizon {m['horizon']}  {learnt}  "
            f"{_thousands(speed)} tokens/s{stopped}  {left}"
        )


def _thousands(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"


def duration(seconds: float) -> str:
    """Writes seconds for people: 2 h 05 min, 3 min 20 s, 12 s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
