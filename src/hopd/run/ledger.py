"""Counts what a run has cost: tokens, serial tokens, FLOPs, seconds. It is saved after every step, and a resume never
resets it.

It keeps two accounts. `run` is the cost of the weights: it is saved with each checkpoint, and is the same whether the
run was interrupted or not. `redone` is the work that interruptions discarded. Their sum is what was spent, and only
grows. `pending` holds what a step adds until the step is complete.
"""

import json
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hopd.model.flops import PassCost
from hopd.processes import Processes
from hopd.rollout.rollout import Rollout, Stretch
from hopd.run.files import json_text, write_atomically


@dataclass
class Account:
    """Adds up tokens: `prompt` tokens prefilled, `generated` by the student, `scored` by the teacher (with the prompts
    that it alone reads), `trained` (with loss).

    `full_rollouts_tokens` is the full-rollout equivalent of `generated_tokens`: every rollout that the horizon cut
    counts as the full length, so it is the most that full rollouts would have generated. `serial_tokens` adds up the
    longest rollout of each step, over all processes: what a machine waits for that holds all rollouts of a step at
    once. An engine with fewer rows than rollouts decodes them in waves and waits longer; its rows are not in the count.
    FLOPs and seconds are by phase: rollout, teacher, update, evaluation.

    `reference_tokens` are those of reference answers: scored and trained on, and not generated.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    full_rollouts_tokens: int = 0
    scored_tokens: int = 0
    trained_tokens: int = 0
    evaluated_tokens: int = 0
    serial_tokens: int = 0
    reference_tokens: int = 0
    flops: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def training_flops(self) -> float:
        """Returns the FLOPs of all phases but the evaluation."""
        return sum(flops for phase, flops in self.flops.items() if phase != "evaluation")

    @property
    def training_seconds(self) -> float:
        """Returns the seconds of all phases but the evaluation."""
        return sum(seconds for phase, seconds in self.seconds.items() if phase != "evaluation")

    @property
    def cost(self) -> dict[str, float]:
        """Names what the weights cost, as an evaluation records it."""
        names = ("training_flops", "training_seconds", "generated_tokens", "trained_tokens", "serial_tokens")
        return {name: getattr(self, name) for name in names}

    def __add__(self, other: "Account") -> "Account":
        return self._plus(other, 1)

    def __sub__(self, other: "Account") -> "Account":
        return self._plus(other, -1)

    def _plus(self, other: "Account", sign: int) -> "Account":
        sums: dict[str, Any] = {}
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            if isinstance(mine, dict):
                sums[name] = {key: mine.get(key, 0.0) + sign * theirs.get(key, 0.0) for key in mine | theirs}
            else:
                sums[name] = mine + sign * theirs
        return Account(**sums)


# What processes add up; of serial tokens, which they generate at the same time, a step has those of the slowest.
TOKENS = tuple(name for name in Account().__dict__ if name.endswith("_tokens") and name != "serial_tokens")
PHASES = ("rollout", "teacher", "update")


class Ledger:
    """Adds to the account of the run and saves it at `path`. Of several processes, only one `writes`. Seconds are those
    of `clock`: time.process_time leaves out the seconds in which other programs had the cores."""

    def __init__(self, path: Path, writes: bool = True, clock: Callable[[], float] = time.perf_counter):
        self.path, self.writes, self.clock = path, writes, clock
        self.run, self.redone, self.pending = Account(), Account(), Account()

    def add(self, phase: str = "", flops: float = 0.0, **tokens: int) -> None:
        """Adds tokens of one kind or several, and FLOPs of a phase. Nothing is ever subtracted."""
        for name, count in tokens.items():
            assert count >= 0
            setattr(self.pending, name, getattr(self.pending, name) + count)
        if phase:
            self.pending.flops[phase] = self.pending.flops.get(phase, 0.0) + flops

    def add_stretches(self, stretches: Sequence[Stretch], rollouts: Sequence[Rollout], cost: PassCost) -> None:
        """Counts what was generated and what was read before. A prompt was read once for the samples that began with
        it, a rollout that went on was read again unless its keys and values were kept."""
        gained = [after.length - stretch.rollout.length for stretch, after in zip(stretches, rollouts, strict=True)]
        prompts = {stretch.rollout.prompt.id: stretch.read for stretch in stretches if not stretch.rollout.length}
        again = [s.read for s in stretches if s.rollout.length and s.rollout.cache is None]
        lengths = [len(ids) for ids in [*prompts.values(), *again]]
        # One that has its keys and values reads its last token first, as if it had just sampled that.
        decoded = [(len(s.read) - (s.rollout.cache is not None), s.rollout.cache is not None) for s in stretches]
        flops = cost.generate([(read, new + kept) for (read, kept), new in zip(decoded, gained, strict=True)], lengths)
        self.add("rollout", flops - cost.head * sum(kept for _, kept in decoded))
        self.add(prompt_tokens=sum(lengths), generated_tokens=sum(gained), serial_tokens=max(gained, default=0))

    def add_ended(self, rollouts: Sequence[Rollout], full_tokens: int) -> None:
        """Counts what full rollouts would have been, and the tokens of reference answers."""
        sampled = [rollout for rollout in rollouts if not rollout.is_reference]
        self.add(
            full_rollouts_tokens=sum(full_tokens if r.finish == "horizon" else r.length for r in sampled),
            reference_tokens=sum(rollout.length for rollout in rollouts if rollout.is_reference),
        )

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the seconds inside to the phase, those of a GPU's pending work included."""
        started = self.clock()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.pending.seconds[name] = self.pending.seconds.get(name, 0.0) + self.clock() - started

    def commit(self, processes: Processes) -> Account:
        """Adds the work since the last commit, of all processes, to the run, and returns it. Serial tokens are those of
        the process that has most; seconds are this process's own."""
        work, self.pending = self.pending, Account()
        # In one fixed order: a process that had nothing to do takes part too.
        counts = [getattr(work, name) for name in TOKENS] + [work.flops.get(phase, 0.0) for phase in PHASES]
        summed = processes.sum(torch.tensor(counts, dtype=torch.float64)).tolist()
        for name, count in zip(TOKENS, summed, strict=False):
            setattr(work, name, int(count))
        work.serial_tokens = int(processes.highest(work.serial_tokens))
        work.flops = {phase: flops for phase, flops in zip(PHASES, summed[len(TOKENS) :], strict=True) if flops}
        self.run = self.run + work
        self.save()
        return work

    def give_up(self) -> None:
        """Books the work since the last commit as lost: it will be done again."""
        self.redone, self.pending = self.redone + self.pending, Account()
        self.save()

    @property
    def spent(self) -> Account:
        """Returns the cost of the run plus the work that interruptions discarded."""
        return self.run + self.redone

    def save(self) -> None:
        """Writes both accounts to `path`, on the process that writes."""
        if self.writes:
            write_atomically(self.path, json_text({"run": asdict(self.run), "redone": asdict(self.redone)}, indent=1))

    def state_dict(self) -> dict[str, Any]:
        """Returns the account of the run, for a checkpoint."""
        return asdict(self.run)

    def resume(self, state: dict[str, Any] | None) -> None:
        """Continues from a checkpoint's account (None: from the start); what the file holds beyond it was lost."""
        checkpoint = Account(**state) if state else Account()
        if self.path.exists():
            kept = json.loads(self.path.read_text())
            self.redone = Account(**kept["redone"]) + (Account(**kept["run"]) - checkpoint)
        self.run = checkpoint
        self.save()


def peak_memory(device: torch.device) -> int:
    """Returns the most bytes that this process has held: allocated on a GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS gives bytes
