"""Raises the alarm where the end of long answers gets worse while their beginning improves.

A horizon teaches the beginning of an answer. What that does to the end shows only in rollouts that get there: whole
ones in a mix, continued ones, those of a horizon that has grown; and the mean over all tokens, most of which are early,
hides it. No threshold is in nats: a tenth of the full length is compared with its own past and with the tenths before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import exp, log, sqrt
from typing import Any

from hopd.horizon import Block, Decision, Evidence

STEPS = 10  # before an average counts, and of the first values
MEMORY = 0.9  # of averages over steps, so about ten of them
SEVERAL = 4  # times: noise of ±20 % makes 1.5 of an unchanged divergence at most, sampling perhaps twice that
SMALL = 0.01  # of the divergence that the first tokens began with: below it, differences do not count
ROUNDING = 1e-6  # nats: student and teacher are the same
ERRORS = 4  # standard errors


@dataclass
class Course:
    """Follows the divergence of a tenth by its logarithm, averaged over steps with its tokens as weights."""

    steps: int = 0
    total: float = 0.0  # of log divergence, times tokens
    tokens: float = 0.0  # of a rollout in the mean, added up over about ten steps
    first: float = 0.0
    least: float = 0.0
    crowd: float = 0.0  # tokens when the average was least

    def add(self, tokens: float, value: float) -> None:
        """Adds a step's log divergence, of so many tokens of a rollout in the mean: maybe none.

        Where twice or half as many get there as when the average was least, they are others, and it is no yardstick.
        """
        self.total, self.tokens = MEMORY * self.total + tokens * value, MEMORY * self.tokens + tokens
        if not tokens:
            return
        self.first = self.first if self.steps else value
        self.steps += 1
        alike = self.crowd / 2 < self.tokens < 2 * self.crowd
        if not alike or self.steps == STEPS or self.average < self.least:
            self.least, self.crowd = self.average, self.tokens

    @property
    def known(self) -> bool:
        """Tells whether the tenth was seen in enough steps, and lately."""
        return self.steps >= STEPS and self.tokens > self.crowd / 2

    @property
    def average(self) -> float:
        return self.total / self.tokens

    @property
    def risen(self) -> float:
        return self.average - self.least


@dataclass
class Ends:
    """Counts the rollouts that go on behind the horizon, those of them that stop, and their tokens there: in the first
    steps, and in the last ones."""

    start: int = 0  # of the first tenth behind the horizon
    steps: int = 0
    first: Sequence[float] = (0.0, 0.0, 0.0)
    last: Sequence[float] = (0.0, 0.0, 0.0)

    def add(self, behind: Sequence[Block]) -> None:
        """Adds a step's tenths behind the horizon."""
        if behind[0].start != self.start:
            vars(self).update(vars(Ends(behind[0].start)))
        seen = (behind[0].rollouts, sum(b.stopped for b in behind), sum(b.tokens for b in behind))
        self.last = [MEMORY * before + now for before, now in zip(self.last, seen, strict=True)]
        if seen[0] and self.steps < STEPS:
            self.first = [before + now for before, now in zip(self.first, seen, strict=True)]
        self.steps += seen[0] > 0

    def rare(self) -> bool:
        """Tells whether fewer than half as many stop as at first, by more than chance explains."""
        (n, stopped, _), (m, stopping, _) = self.first, self.last
        if 2 * stopping * n >= stopped * m:
            return False
        share = (stopped + stopping) / (n + m)
        return stopped / n - stopping / m > ERRORS * sqrt(share * (1 - share) * (1 / n + 1 / m))


@dataclass
class DriftAlarm:
    """Remembers the course of every tenth, and how rollouts end that go on behind the horizon.

    A tenth has drifted if, against its own least value, its divergence has grown 4 times more than that of the tenths
    before, which has halved since their first steps. Stopping has drifted if, of the rollouts that go on behind the
    horizon, fewer than half as many stop by themselves as in the first steps.
    """

    begun: float | None = None  # divergence of the first tokens in the first step, in nats
    courses: list[Course] = field(default_factory=list)
    ends: Ends = field(default_factory=Ends)

    @classmethod
    def restored(cls, state: Mapping[str, Any] | None) -> "DriftAlarm":
        """Restores a state from `state_dict`. Without one (a new run, or a checkpoint of 0.2) it remembers nothing."""
        if state is None:
            return cls()
        return cls(state["begun"], [Course(**course) for course in state["courses"]], Ends(**state["ends"]))

    def sentence(self, step: int, decision: Decision, evidence: Evidence) -> str | None:
        """Takes note of a step, and returns a sentence if the end of answers has drifted."""
        self._add(evidence)
        found = self._drifted(evidence.blocks)
        behind = [block for block in evidence.blocks if block.start >= decision.tokens]
        cuts = bool(behind) and decision.whole is not None
        if cuts and not decision.continues and decision.end is None:
            self.ends.add(behind)
            found = found or self._rare()
        return f"step {step}: {found}; {_remedy(decision, cuts)}" if found else None

    def _add(self, evidence: Evidence) -> None:
        blocks = evidence.blocks
        if self.begun is None:
            self.begun = next((block.reverse_kl for block in blocks if block.reverse_kl > ROUNDING), None)
            self.courses = [Course() for _ in blocks]
        if self.begun is not None:
            for course, block in zip(self.courses, blocks, strict=True):
                divergence = max(block.reverse_kl, SMALL * self.begun)
                course.add(block.tokens / max(1, evidence.rollouts), log(divergence))

    def _drifted(self, blocks: Sequence[Block]) -> str | None:
        """Returns the beginning of a sentence about the tenth that has drifted most."""
        worst, found = log(SEVERAL), None
        for place, course in enumerate(self.courses):
            before = [earlier for earlier in self.courses[:place] if earlier.known]
            if not course.known or not before:
                continue
            risen, early, first = (
                sum(getattr(earlier, name) for earlier in before) / len(before)
                for name in ("risen", "average", "first")
            )
            if course.risen - risen > worst and first - early > log(2):
                worst = course.risen - risen
                found = (
                    f"the divergence of response tokens {blocks[place].start} to {blocks[place].end} has grown to "
                    f"{exp(course.average):.2g} nats, at least {exp(course.risen):.0f} times its lowest, while that of "
                    f"the tokens before fell from {exp(first):.2g} to {exp(early):.2g}"
                )
        return found

    def _rare(self) -> str | None:
        """Returns the beginning of a sentence if stopping has drifted."""
        if not self.ends.rare():
            return None
        (n, stopped, tokens), (m, stopping, lately) = self.ends.first, self.ends.last
        return (
            f"of the rollouts that go on behind token {self.ends.start}, {stopping / m:.0%} stop by themselves, "
            f"{lately / m:.0f} tokens later; at first, {stopped / n:.0%} did, {tokens / n:.0f} tokens later"
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain data."""
        return asdict(self)


def _remedy(decision: Decision, cuts: bool) -> str:
    if cuts:
        return (
            "the horizon teaches the beginning at the cost of the end: let more rollouts run whole, horizon: {whole: "
            f"{2 * (decision.whole or 1)}}}, or let them continue, horizon: {{continue: true}}"
        )
    return "late tokens need more rollouts in a step (horizon.rollouts), or a lower training.learning_rate"
