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
from hopd.run.trackers import SCORE, Trackers


class Recorder:
    """Sends every complete step to `metrics.jsonl` and `horizon.jsonl`, and every evaluation to `evaluations.jsonl`,
    `scores.jsonl` and `samples.jsonl`; `trackers` are names of `hopd.run.trackers`."""

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
        wanted = trackers if processes.is_first else ()
        self._trackers = Trackers(wanted, directory.path, progress.note)

    @contextmanager
    def run(self, first: int, total: int, recipe: str) -> Iterator[None]:
        """Shows steps `first` to `total` until the block ends, and closes the trackers then. Their configuration is the
        resolved `recipe`."""
        with self.progress.run(self.name, first, total):
            if self._trackers.names:
                steps = [(line["step"], line) for line in self.directory.read("metrics")]
                scores = [(line["step"], {SCORE: line["score"]}) for line in self.directory.read("evaluations")]
                self._trackers.open(self.name, recipe, steps, scores)
            try:
                yield
            finally:
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
        self._trackers.step(step, metrics)

    def evaluation(
        self, found: Evaluation, scores: dict[str, Any], samples: Sequence[dict[str, Any]], started: str, seconds: float
    ) -> None:
        """Writes an evaluation that took `seconds`, each problem's score, and a few rollouts for people to read."""
        if self.processes.is_first:
            self.directory.environment.evaluated(found.step, started)
            name = "accuracy" if "accuracy" in found.measured else "score"
            self.directory.score(found.step, {name: found.score})
            self.directory.append("evaluations", found.line())
            self.directory.append("scores", {"step": found.step} | scores)
            for sample in samples:
                self.directory.append("samples", {"step": found.step} | sample)
            self.progress.evaluation(f"step {found.step}: {found.summary}", seconds)
        self._trackers.score(found.step, found.score)
