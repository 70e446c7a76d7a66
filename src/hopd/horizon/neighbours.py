"""Defines the rules of neighbouring papers, as baselines: prune, plateau, settled.

Each is its paper's rule as far as that is public, on what a step shows here: the divergence of student and teacher by
tenths of the full length, after the step. The papers look at single rollouts, some while they are sampled, and at the
overlap of the likeliest tokens. Every class says where it deviates. Where a step shows no tenths (in TRL), the horizon
stays as it is. All raise `RecipeError` for values out of range.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, log
from typing import Any

from hopd.horizon.controller import Block, Decision, Evidence
from hopd.horizon.schedule import Cut, at_least, at_most_full

TENTHS = 10
ENOUGH = 0.1  # of the rollouts: Prune-OPD's share, and FastOPD's is not public

DISAGREE = 0.36  # nats: −ln .7
PAPER = {"full": 12288, "floor": 1024, "step": 100, "allowance": 100}  # Prune-OPD's constants, in tokens
MISSES = 3

MEMORY = 0.9  # of the average of log ratios, which FastOPD does not publish
LOWER = 0.01  # by which a log ratio must fall to be a new minimum: an average nears a constant for ever
LEARNT = 1e-3  # of the divergence at first, or its inverse: log ratios go no further, even if an estimate is negative

SETTLED = 0.7  # quantile of the least divergences: KAT's 1 − η
TIMES = 4
RECENT = 50  # steps


@dataclass
class Memory:
    """Holds what a rule remembers, as plain data that is replaced and never changed in place; `why` explains the last
    change of the horizon."""

    why: str = "to begin with"


@dataclass(frozen=True)
class Rule(Cut, ABC):
    """Moves the horizon by what steps show. The options stay as they are; all that changes is in `memory`."""

    memory: Memory = field(default_factory=Memory, init=False, repr=False, compare=False)

    @property
    @abstractmethod
    def horizon(self) -> int:
        """Returns the horizon of the next step, in tokens."""

    @abstractmethod
    def learn(self, evidence: Evidence) -> None:
        """Takes note of a step that showed the divergence of some tenths."""

    def decide(self, step: int) -> Decision:
        name = type(self).__name__.lower()
        decision = self.spend(self.horizon, f"{name}: {self.horizon} of {self.full_tokens} tokens")
        return replace(decision, reason=f"{decision.reason}; {self.memory.why}")

    def observe(self, evidence: Evidence) -> None:
        if any(block.tokens for block in evidence.blocks):
            self.learn(evidence)

    def state_dict(self) -> dict[str, Any]:
        return vars(self.memory).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self.memory).update(state)


@dataclass
class PruneMemory(Memory):
    moves: int = 0  # up, less those down
    misses: int = 0


@dataclass(frozen=True)
class Prune(Rule):
    """Keeps the horizon where rollouts still agree with the teacher: Prune-OPD's budget (2605.07804).

    A rollout agrees as far as less than 100 of its tokens, of 12,288, had an overlap below .7. If 10 % of the rollouts
    agree to the last 100 tokens before the horizon, it grows by 100; after 3 steps in which they do not, it shrinks by
    100, and never below 1,024. All lengths are scaled to T. Deviations: overlap is not measured. A tenth whose mean
    divergence is above −ln .7 = .36 nats counts as below .7 throughout, since that is what a student pays that never
    leaves tokens of which the teacher chooses one with probability .7. So all rollouts of a step agree equally far,
    except those that stopped before. Where the budget begins is not public; here it is at its floor. The weights of
    tokens, which fall with disagreement, are left out.
    """

    memory: PruneMemory = field(default_factory=PruneMemory, init=False, repr=False, compare=False)

    @property
    def horizon(self) -> int:
        return min(self.full_tokens, self._scaled("floor") + self.memory.moves * self._scaled("step"))

    def learn(self, evidence: Evidence) -> None:
        memory, step, last = self.memory, self._scaled("step"), self.horizon == self.full_tokens
        agreed = self._agreed(evidence.blocks) >= self.horizon - step
        share = _reaching(self.horizon, evidence) if agreed else 0.0
        memory.misses = 0 if share >= ENOUGH else memory.misses + 1
        if memory.misses == 0 and not last:
            memory.moves += 1
            memory.why = f"{share:.0%} of the rollouts agreed with the teacher to the end, so it grew by {step}"
        if memory.misses == MISSES:
            memory.misses = 0
            if memory.moves:
                memory.moves -= 1
                memory.why = f"in {MISSES} steps too few rollouts agreed with the teacher to the end, so it shrank"

    def _agreed(self, blocks: Sequence[Block]) -> int:
        """Returns the number of tokens before disagreement has used up its allowance."""
        left = self._scaled("allowance")
        for block in blocks:
            if block.tokens and block.reverse_kl > DISAGREE:
                left -= block.end - block.start
                if left <= 0:
                    return block.end + left - 1
        return self.full_tokens

    def _scaled(self, name: str) -> int:
        return max(1, round(PAPER[name] * self.full_tokens / PAPER["full"]))


@dataclass
class PlateauMemory(Memory):
    grown: int = 0  # times
    entered: float | None = None  # the band's divergence when the horizon was entered, in nats
    average: float = 0.0  # of the log ratio to it
    least: float = 0.0
    waited: int = 0  # steps


@dataclass(frozen=True)
class Plateau(Rule):
    """Grows once the last tokens before the horizon are learnt: Adaptive FastOPD (2607.29494).

    It watches the divergence of the band [H − ΔH, H), as the logarithm of its ratio to what it was when H was entered,
    averaged over steps. When that has had no new minimum for K = `patience` steps, and enough rollouts reach H, H grows
    by ΔH = `increment`; it begins at `start` and never shrinks. Deviations: FastOPD takes the largest of four
    dissimilarities of the likeliest tokens, here there is one, the divergence, of the tenths that the band touches. Its
    constants are not public: the average forgets a tenth in each step, a new minimum is lower by 1 %, and enough
    rollouts are 10 %.
    """

    start: int
    increment: int
    patience: int = 10
    memory: PlateauMemory = field(default_factory=PlateauMemory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("horizon start", self.start, 1)
        at_least("horizon increment", self.increment, 1)
        at_least("horizon patience", self.patience, 1)
        at_most_full(self.start, self.full_tokens)

    @property
    def horizon(self) -> int:
        return min(self.full_tokens, self.start + self.memory.grown * self.increment)

    def learn(self, evidence: Evidence) -> None:
        memory, end = self.memory, self.horizon
        begin = max(0, end - self.increment)
        band = [block for block in evidence.blocks if block.tokens and block.start < end and block.end > begin]
        if not band or end == self.full_tokens:
            return
        divergence = sum(block.reverse_kl * block.tokens for block in band) / sum(block.tokens for block in band)
        if memory.entered is None:
            memory.entered = divergence if divergence > 0 else None
            return
        ratio = log(min(max(divergence / memory.entered, LEARNT), 1 / LEARNT))
        memory.average += (1 - MEMORY) * (ratio - memory.average)
        if memory.average <= memory.least - LOWER:
            memory.waited, memory.least = 0, memory.average
        else:
            memory.waited += 1
        share = _reaching(end, evidence)
        if memory.waited >= self.patience and share >= ENOUGH:
            why = f"tokens {begin} to {end} came no closer in {memory.waited} steps, and {share:.0%} of the rollouts"
            why += " got that far, so it grew"
            vars(memory).update(vars(PlateauMemory(why, memory.grown + 1)))


@dataclass
class SettledMemory(Memory):
    kept: int = TENTHS  # of the full length
    minima: Sequence[float] = ()  # the least divergences of recent steps, in nats
    wanted: int = 0  # tenths less (−1) or more (1), in the last `times` steps
    times: int = 0


@dataclass(frozen=True)
class Settled(Rule):
    """Ends rollouts where the divergence has settled, because there the teacher agrees and corrects nothing: after KAT
    (2606.09471).

    KAT ends a rollout when the mean divergence of 64 tokens has been 4 times below the quantile .7 of the minima of
    recent rollouts, after 50 steps of `warmup`. Deviations: it decides for every rollout, while that is sampled. Here a
    tenth has settled if its mean over a step is below the quantile .7 of the least tenths of the last 50 steps; if that
    holds of a tenth before the horizon in 4 steps in succession, the horizon shrinks by a tenth, but not below one; if
    none has settled in 4, it grows by a tenth.
    """

    warmup: int = 50
    memory: SettledMemory = field(default_factory=SettledMemory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("horizon warmup", self.warmup, 0)

    @property
    def horizon(self) -> int:
        return ceil(self.memory.kept * self.full_tokens / TENTHS)

    def learn(self, evidence: Evidence) -> None:
        memory, minima = self.memory, self.memory.minima
        blocks = [block for block in evidence.blocks if block.tokens and block.start < self.horizon]
        if not blocks:
            return
        least = min(block.reverse_kl for block in blocks)
        memory.minima = [*minima, least][-RECENT:]
        if evidence.step < self.warmup or not minima:
            return
        threshold = sorted(minima)[ceil(SETTLED * len(minima)) - 1]
        settled = next((block.end for block in blocks if block.reverse_kl < threshold), None)
        wanted = 1 if settled is None else -1 if settled < self.horizon else 0
        memory.times = memory.times + 1 if wanted == memory.wanted else 1
        memory.wanted = wanted
        if memory.times >= TIMES and 1 <= memory.kept + wanted <= TENTHS and wanted:
            memory.kept += wanted
            memory.times = 0
            found = "none was" if settled is None else f"the one that ends at token {settled} was"
            memory.why = f"of the tenths, {found} below {threshold:.2g} nats, the {TIMES}th time, so it "
            memory.why += "grew by a tenth" if wanted > 0 else "shrank by a tenth"


def _reaching(horizon: int, evidence: Evidence) -> float:
    """Returns the share of the rollouts that reached the horizon: those that did not stop in a tenth before it."""
    stopped = sum(block.stopped for block in evidence.blocks if block.start < horizon)
    return (evidence.rollouts - stopped) / max(1, evidence.rollouts)
