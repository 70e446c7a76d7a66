"""Writes down what a run shows: its files, the live line, trackers. Of several processes the first one writes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hopd.evaluation import Evaluation
from hopd.horizon import Decision, Evidence
from hopd.processes import Processes
from hopd.run.directory import RunDirectory
from hopd.run.drift import DriftAlarm
from hopd.run.ledger import Ledger, peak_memory
from hopd.run.mismatch import MismatchAlarm
from hopd.run.progress import Progress
from hopd.run.trackers import Trackers


class Recorder:
    """Sends every complete step to `metrics.jsonl` and `horizon.jsonl`, and every evaluation to `evaluations.jsonl`,
    `scores.jsonl` and `samples.jsonl`; `trackers` are names of accelerate's."""

    def __init__(
        self,
        name: str,
        directory: RunDirectory,
        ledger: Ledger,
        mismatch: MismatchAlarm,
        drift: DriftAlarm,
        progress: Progress,
        processes: Processes,
        trackers: Sequence[str] = (),
    ):
        self.name, self.directory, self.ledger = name, directory, ledger
        self.mismatch, self.drift = mismatch, drift
        self.progress, self.processes = progress, processes
        self._trackers = Trackers(trackers, directory.path) if trackers else None

    @contextmanager
    def run(self, first: int, total: int) -> Iterator[None]:
        """Shows steps `first` to `total` until the block ends, and closes the trackers then."""
        if self._trackers:
            self._trackers.open(self.name)
        try:
            with self.progress.run(self.name, first, total):
                yield
        finally:
            if self._trackers:
                self._trackers.close()

    def step(
        self,
        step: int,
        decision: Decision,
        evidence: Evidence,
        measured: Mapping[str, Any],
        teacher: str | None = None,
    ) -> None:
        """Commits the step's work to the ledger and writes what it showed, with the alarm of a `teacher` if there is
        one. All processes call it together."""
        work = self.ledger.commit(self.processes)
        metrics = {
            "step": step,
            "horizon": decision.tokens,
            **measured,
            "generated_tokens": work.generated_tokens,
            "trained_tokens": work.trained_tokens,
            "serial_tokens": work.serial_tokens,
            "seconds": work.training_seconds,
            "flops": work.training_flops,
            "peak_memory": peak_memory(self.processes.device),
        }
        found = {
            "mismatch": self.mismatch.sentence(step, metrics.get("mismatch", 0.0)),
            "drift": self.drift.sentence(step, decision, evidence),
            "teacher": teacher,
        }
        alarms = {name: sentence for name, sentence in found.items() if sentence}
        if self.processes.is_first:
            self.directory.append("metrics", metrics | ({"alarm": "\n".join(alarms.values())} if alarms else {}))
            self.directory.append("horizon", {"step": step, "tokens": decision.tokens, "reason": decision.reason})
            self.progress.step(metrics, decision, alarms)
        self._track({name: value for name, value in metrics.items() if isinstance(value, int | float)}, step)

    def evaluation(self, found: Evaluation, scores: dict[str, Any], samples: Sequence[dict[str, Any]]) -> None:
        """Writes an evaluation, each problem's score, and a few rollouts for people to read."""
        if self.processes.is_first:
            self.directory.append("evaluations", found.line())
            self.directory.append("scores", {"step": found.step} | scores)
            for sample in samples:
                self.directory.append("samples", {"step": found.step} | sample)
            self.progress.note(f"step {found.step}: {found.summary}")
        self._track({"evaluation/score": found.score}, found.step)

    def _track(self, values: Mapping[str, Any], step: int) -> None:
        if self._trackers:
            self._trackers.log(values, step)
