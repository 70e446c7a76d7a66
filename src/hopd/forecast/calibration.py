"""Measures real steps at a few horizons, and works out what other horizons cost: tokens, FLOPs, seconds, memory.

From the same steps it fits what a serial token and a FLOP take on this machine.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from hopd.assembly import Parts
from hopd.forecast.machine import Machine
from hopd.forecast.memory import estimate_memory, rollout_bytes
from hopd.forecast.outlook import stages
from hopd.horizon import Decision
from hopd.rollout import FinishReason, Prompt, Rollout
from hopd.run.ledger import PHASES, Account, peak_memory

WARM_UP, SHORTEST = 4, 16  # tokens
REPEATS, WORTH_REPEATING_SECONDS = 7, 3.0


@dataclass(frozen=True)
class Cost:
    """Holds the cost of one step: tokens that the student generates, those of its longest rollout, FLOPs and seconds by
    phase."""

    tokens: float
    serial_tokens: int
    flops: dict[str, float]
    seconds: dict[str, float]

    def times(self, share: float) -> "Cost":
        """Returns the cost of so many times as many rollouts, none of them longer; nothing of none."""
        flops, seconds = ({phase: share * x for phase, x in of.items()} for of in (self.flops, self.seconds))
        return Cost(share * self.tokens, self.serial_tokens if share else 0, flops, seconds)

    def plus(self, other: "Cost") -> "Cost":
        """Returns the cost of both at once."""
        flops = {phase: x + other.flops[phase] for phase, x in self.flops.items()}
        seconds = {phase: x + other.seconds[phase] for phase, x in self.seconds.items()}
        return Cost(self.tokens + other.tokens, max(self.serial_tokens, other.serial_tokens), flops, seconds)


@dataclass(frozen=True)
class Stage:
    """Covers steps `first` to `last` (from 0), at horizons `low` to `high`. Tokens, serial tokens, FLOPs and seconds
    are of the whole stage, `memory` is the peak in bytes."""

    first: int
    last: int
    low: int
    high: int
    tokens: float
    serial_tokens: float
    flops: float
    seconds: float
    memory: float

    @property
    def steps(self) -> int:
        """Returns the number of steps in the stage."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class _Measured:
    """Records a real step on one wave: tokens of its longest rollout, FLOPs, seconds for each unit of work by phase,
    seconds of the optimiser and of all, bytes at the peak so far."""

    horizon: int
    serial_tokens: int
    flops: float
    rates: dict[str, float]
    apply_seconds: float
    seconds: float
    memory: float


class Calibration:
    """Takes real steps with a run's parts on one wave of rollouts, and works out from them what other steps cost."""

    def __init__(self, parts: Parts):
        self.parts, self.rollout = parts, parts.recipe.rollout
        wave = max(1, min(self.rollout.prompts, self.rollout.rows // self.rollout.samples))
        self.prompts = parts.order.at(0)[:wave]
        self.waves = self.rollout.prompts / wave  # in a step
        self.measured: list[_Measured] = []
        self.alone: list[_Measured] = []  # steps on a single rollout
        self.sampled: list[Rollout] = []
        self.cost = cache(self._cost)

    def measure(self, budget_seconds: float) -> None:
        """Measures rising horizons of the run, each only if it fits the rest of the budget, else half as long; then a
        single rollout, at the longest of them that fits."""
        ends = time.perf_counter() + budget_seconds
        full = self.rollout.full_tokens
        self._take_step(min(WARM_UP, full))
        self._measure(min(SHORTEST, full))
        for wanted in sorted({self.parts.controller.decide(step).tokens for step in self._landmarks()} | {full}):
            horizon = wanted
            while horizon > self.measured[-1].horizon:
                if sum(self.cost(horizon).seconds.values()) / self.waves <= ends - time.perf_counter():
                    self._measure(horizon)
                    break
                horizon //= 2
        left = ends - time.perf_counter()
        self._take_alone(min(WARM_UP, full))
        fitting = [measured.horizon for measured in self.measured if measured.seconds <= left]
        self.alone.append(_median(self._take_alone, max(fitting, default=self.measured[0].horizon)))

    def machine(self) -> tuple[Machine, float]:
        """Fits this machine to what was measured, and says by how much it misses the worst step, as a share of its
        seconds. The optimiser's own seconds are left out: they depend on neither tokens nor FLOPs."""
        steps = [(m.serial_tokens, m.flops, m.seconds - m.apply_seconds) for m in (*self.measured, *self.alone)]
        fitted = Machine.fitted(steps)
        return fitted, max(abs(fitted.seconds(serial, flops) / seconds - 1) for serial, flops, seconds in steps)

    def stage(self, first: int, last: int, decisions: Sequence[Decision]) -> Stage:
        """Returns the cost of the steps `first` to `last`, of which some `decisions` are known."""
        costs = [self._spent(decision) for decision in decisions]
        horizons = [decision.tokens for decision in decisions]
        longest = max(decision.longest(self.rollout.full_tokens) for decision in decisions)
        rollouts = max(sum(decision.parts(self.rollout.per_step)) for decision in decisions)
        steps = last - first + 1

        def whole(values: Iterator[float]) -> float:
            return steps * float(np.mean(list(values)))

        return Stage(
            first,
            last,
            min(horizons),
            max(horizons),
            whole(cost.tokens for cost in costs),
            whole(cost.serial_tokens for cost in costs),
            whole(sum(cost.flops.values()) for cost in costs),
            whole(sum(cost.seconds.values()) for cost in costs),
            self._memory(longest, rollouts),
        )

    def _spent(self, decision: Decision) -> Cost:
        """Returns the cost of a step: that of its rollouts cut at the horizon, and of those that are whole.

        Costs are in proportion to the number of rollouts. Of rollouts that continue as many tokens are trained on as
        are generated, so they cost what as large a part of a step of whole ones does.
        """
        cut, whole = decision.parts(self.rollout.per_step)
        cost = self.cost(decision.tokens).times(cut / self.rollout.per_step)
        if whole:
            full = self.cost(decision.longest(self.rollout.full_tokens))
            share = whole / self.rollout.per_step
            if decision.continues and full.serial_tokens:
                # One that is sampled takes so many steps, a reference answer takes one.
                steps = max(1.0, full.serial_tokens / decision.tokens)
                share /= self.rollout.sampled_share * (steps - 1) + 1
                full = replace(full, serial_tokens=min(decision.tokens, full.serial_tokens))
            cost = cost.plus(full.times(share))
        return cost

    def memory_of_evaluation(self) -> float:
        """Returns the bytes that an evaluation takes, always to the full length."""
        evaluation = self.parts.recipe.evaluation
        if evaluation is None:
            return 0.0
        shortest = self.measured[0]
        then = estimate_memory(self.parts, shortest.horizon, self._rollouts)
        return shortest.memory + max(
            0.0, rollout_bytes(self.parts, evaluation.rows, self.rollout.full_tokens) - max(then.rollout, then.update)
        )

    @property
    def _rollouts(self) -> int:
        return len(self.prompts) * self.rollout.samples

    def _landmarks(self) -> set[int]:
        """Returns the middle and the end of every stage."""
        return {
            step
            for first, last, _, _ in stages(self.parts.controller, self.parts.total_steps)
            for step in ((first + last) // 2, last)
        }

    def _measure(self, horizon: int) -> None:
        self.measured.append(_median(self._take_step, horizon))
        self.cost.cache_clear()

    def _take_step(self, horizon: int) -> _Measured:
        self.sampled, measured = self._step(horizon, self.prompts, self.rollout.samples)
        return measured

    def _take_alone(self, horizon: int) -> _Measured:
        return self._step(horizon, self.prompts[:1], 1)[1]

    def _step(self, horizon: int, prompts: Sequence[Prompt], samples: int) -> tuple[list[Rollout], _Measured]:
        parts = self.parts
        parts.ledger.pending = Account()
        with parts.ledger.phase("rollout"):
            rollouts = parts.engine.sample(prompts, horizon, parts.sampling, parts.recipe.seed, samples)
        parts.learner.accumulate(rollouts, parts.recipe.seed, parts.statistics())
        seconds = dict(parts.ledger.pending.seconds)
        parts.learner.apply(step=0)
        applied = parts.ledger.pending.seconds["update"] - seconds["update"]
        work, flops = self._work(rollouts), self._flops(rollouts)
        parts.ledger.pending = Account()
        return rollouts, _Measured(
            horizon,
            max(rollout.length for rollout in rollouts),
            sum(flops.values()),
            {phase: seconds[phase] / work[phase] for phase in PHASES},
            applied,
            sum(seconds.values()) + applied,
            peak_memory(parts.processes.device),
        )

    def _cost(self, horizon: int) -> Cost:
        rollouts, sampled = [_cut(rollout, horizon) for rollout in self.sampled], self.rollout.sampled_share
        references = self._references(horizon)
        flops = self._mixed(self._flops(rollouts), self._flops(references))
        work = self._mixed(self._work(rollouts), self._work(references))
        at = [measured.horizon for measured in self.measured]

        def between(values: Sequence[float]) -> float:
            return float(np.interp(horizon, at, values))

        seconds = {p: work[p] * between([measured.rates[p] for measured in self.measured]) for p in PHASES}
        updates = -(-self.rollout.prompts // (self.parts.recipe.training.mini_batch or self.rollout.prompts))
        seconds["update"] += updates * between([measured.apply_seconds for measured in self.measured])
        lengths = [rollout.length for rollout in rollouts]
        return Cost(self.waves * sampled * sum(lengths), max(lengths) if sampled else 0, flops, seconds)

    def _references(self, horizon: int) -> list[Rollout]:
        """Returns the reference answers to the prompts of a wave, cut at the horizon; none where no step has any."""
        samples = range(self.rollout.samples) if self.rollout.off_policy else ()
        return [Rollout.of_reference(prompt, sample, horizon, 0) for prompt in self.prompts for sample in samples]

    def _mixed(self, sampled: dict[str, float], references: dict[str, float]) -> dict[str, float]:
        """Returns the amounts of all waves, by phase, where a share of the rollouts is sampled."""
        share = self.rollout.sampled_share
        return {
            phase: self.waves * (share * x + (1 - share) * references.get(phase, 0.0)) for phase, x in sampled.items()
        }

    def _work(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Returns what a phase's seconds are proportional to: FLOPs, or tokens of a teacher that computes elsewhere."""
        flops = self._flops(rollouts)
        return flops | {"teacher": flops.get("teacher") or float(sum(r.length + r.prompt.own_tokens for r in rollouts))}

    def _flops(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        parts = self.parts
        generated = [rollout for rollout in rollouts if not rollout.is_reference]
        prefilled = {r.prompt.id: len(r.prompt.ids) for r in generated}.values()
        lengths = [(len(r.prompt.ids), r.length) for r in generated]
        flops = {"rollout": parts.learner.student_cost.generate(lengths, prefilled)}
        for batch in parts.learner.batches(rollouts, parts.recipe.seed):
            for phase, more in parts.learner.flops(batch).items():
                flops[phase] = flops.get(phase, 0.0) + more
        return flops

    def _memory(self, horizon: int, rollouts: int) -> float:
        """Adds to what was measured at the longest horizon up to this one what the estimate puts between them."""
        nearest = max((m for m in self.measured if m.horizon <= horizon), key=lambda m: m.horizon, default=None)
        nearest = nearest or self.measured[0]
        then = estimate_memory(self.parts, nearest.horizon, self._rollouts).peak
        now = estimate_memory(self.parts, horizon, rollouts).peak
        return nearest.memory + max(0.0, now - then)


def _median(take: Callable[[int], _Measured], horizon: int) -> _Measured:
    """Takes the median of several steps where a step is short: its time varies."""
    taken = [take(horizon)]
    while len(taken) < REPEATS and len(taken) * taken[0].seconds < WORTH_REPEATING_SECONDS:
        taken.append(take(horizon))
    return sorted(taken, key=lambda step: step.seconds)[len(taken) // 2]


def _cut(rollout: Rollout, horizon: int) -> Rollout:
    """Returns what the rollout would have been at this horizon; one that the calibration cut is assumed to go on."""
    if rollout.finish != FinishReason.HORIZON or rollout.length >= horizon:
        return replace(rollout, ids=rollout.ids[:horizon], log_probs=rollout.log_probs[:horizon])
    missing = (0, horizon - rollout.length)
    ids, log_probs = (torch.nn.functional.pad(t, missing) for t in (rollout.ids, rollout.log_probs))
    return replace(rollout, ids=ids, log_probs=log_probs)
