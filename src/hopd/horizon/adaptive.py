"""Defines the adaptive controller: rollouts that continue, as many as the noise of their gradients calls for.

What a short horizon saves is the size of a step; what it costs is the end of the answer. So rollouts continue: a step
gives every one of them a tenth of the full length, which takes as few serial tokens as a horizon of a tenth, and covers
what full rollouts cover. Their number follows the noise: a step of B rollouts, with B noise over signal, makes half the
progress of an endless one, and of a larger one most is spent in vain (McCandlish et al., 2018). B is about one early in
training and tens late. Rollouts end early only where the teacher is less certain than the student and pulls elsewhere.

By that model progress takes 1 + B / b steps, and 1 + b / B tokens, in units of the least of each, where b rollouts end
in a step. So b = B takes twice the least of both, and every other b more of one of them. A machine makes the two
comparable: if one more serial token takes as long as the tokens of `width` rollouts, and a rollout n steps, the seconds
are (1 + B / b) (width + n b), and least at b² = B · width / n.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, ClassVar

from hopd.errors import RecipeError
from hopd.horizon.controller import Decision, Evidence, Gradients

STRIDES = 10  # of a full rollout: its tokens are up to ten steps old when it is trained on
LEAST = 3  # rollouts that end in a step: of fewer there are hardly pairs to compare
MEMORY = 0.9  # of averages over steps, so about ten of them
PATIENCE = 5  # steps between changes
CHANGE = 1.5  # by which the number of rollouts changes at most
HALF = 0.5  # of a divergence, and of a cosine


@dataclass
class Adaptive:
    """Decides how many rollouts continue, and where they end.

    `per_step` is the recipe's number of rollouts in a step: at most as many end in one, so that no step costs more than
    full rollouts. Without gradients in its evidence it keeps the number that it begins with. `width` is that of the
    machine, in rollouts; without one, tokens and serial tokens count alike. Raises `RecipeError` for a full length of
    fewer than ten tokens, and a width that is not positive.
    """

    sketches: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    full_tokens: int
    per_step: int
    width: float | None = None
    ending: float = field(init=False)  # rollouts that are to end in a step
    end: int = field(init=False)  # tokens
    length: float = field(init=False)  # of a rollout in the mean, in tokens
    averages: "Averages" = field(init=False)
    changed: int = field(default=0, init=False)  # the step of the last change
    progress: float | None = field(default=None, init=False)  # the divergence when the end was last moved, in nats
    why: str = field(default="a few, to begin with", init=False)

    def __post_init__(self) -> None:
        if self.full_tokens < STRIDES:
            raise RecipeError(
                f"horizon 'adaptive' needs rollout.full_tokens of at least {STRIDES}, got {self.full_tokens}"
            )
        if self.width is not None and not 0 < self.width < inf:
            raise RecipeError(f"horizon width must be a positive number of rollouts, got {self.width}")
        self.stride = self.full_tokens // STRIDES
        self.ending, self.end = float(min(LEAST, self.per_step)), self.full_tokens
        self.length, self.averages = float(self.full_tokens), Averages()

    def decide(self, step: int) -> Decision:
        """Returns as many rollouts as let `ending` of them end in a step."""
        slots = max(1, round(self.ending * self._steps()))
        reason = f"adaptive: {slots} rollouts, each {self.stride} tokens further, to {self.end}; {self.why}"
        return Decision(self.stride, reason, rollouts=slots, whole=None, continues=True, end=self.end)

    def observe(self, evidence: Evidence) -> None:
        """Takes note of a step, and every few steps changes at most one thing."""
        if 2 * evidence.stopped > evidence.rollouts:  # not the first ones, which are cut at different depths
            self.length += (1 - MEMORY) * (evidence.mean_length - self.length)
        self.averages.add(evidence)
        if evidence.step - self.changed >= PATIENCE and self.averages.steps >= STRIDES:
            self.changed = evidence.step
            self._move_end() or self._resize()

    def _resize(self) -> bool:
        """Brings the number of rollouts towards noise over signal."""
        noise, signal = self.averages.noise(), self.averages.signal()
        ratio = noise / signal if signal > 0 else inf
        wanted = ratio if self.width is None else (ratio * self.width / self._steps()) ** 0.5
        factor = min(CHANGE, max(1 / CHANGE, wanted / self.ending))
        self.ending = min(float(self.per_step), max(float(min(LEAST, self.per_step)), self.ending * factor))
        measured = f"{ratio:.1f}" if signal > 0 else "beyond what was measured"
        self.why = f"noise over signal is {measured}, so {self.ending:.1f} end in a step"
        return True

    def _move_end(self) -> bool:
        """Ends rollouts before the first block that misleads, and tries the next block again when the divergence before
        it has halved."""
        averages, last = self.averages, -(-self.end * STRIDES // self.full_tokens)
        for block in range(1, last):
            if averages.misleads(block):
                self.end, self.progress = self._start(block), averages.divergence(block)
                self.why = (
                    f"from token {self.end} on the teacher is {averages.surplus[block]:.2g} nats less certain than the "
                    "student and pulls elsewhere"
                )
                return True
        if self.progress is not None and averages.divergence(last) < HALF * self.progress and last < STRIDES:
            self.end, self.progress = self._start(last + 1), averages.divergence(last)
            averages.forget(last)
            self.why = "the divergence has halved, so the next tenth is tried again"
            return True
        return False

    def _steps(self) -> float:
        return min(self.length, self.end) / self.stride

    def _start(self, block: int) -> int:
        return max(1, block * self.full_tokens // STRIDES)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain data."""
        names = ("ending", "end", "length", "changed", "progress", "why")
        return {name: getattr(self, name) for name in names} | {"averages": vars(self.averages).copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state from `state_dict`."""
        for name, value in state.items():
            setattr(self, name, Averages(**value) if name == "averages" else value)


@dataclass
class Averages:
    """Averages over the last steps, by tenth of the full length: products of gradients and their noise, the divergence,
    and by how much the teacher's entropy exceeds the student's (nats a token)."""

    steps: int = 0
    products: list[list[float]] = field(default_factory=lambda: [[0.0] * STRIDES for _ in range(STRIDES)])
    noises: list[float] = field(default_factory=lambda: [0.0] * STRIDES)
    reverse_kl: list[float | None] = field(default_factory=lambda: [None] * STRIDES)
    surplus: list[float] = field(default_factory=lambda: [0.0] * STRIDES)
    highest: float = 0.0  # divergence of the first block so far

    def add(self, evidence: Evidence) -> None:
        """Adds what a step showed."""
        if evidence.gradients is not None:
            self._add_gradients(evidence.gradients)
        for place, block in enumerate(evidence.blocks):
            if block.tokens:
                before = self.reverse_kl[place]
                share = 1.0 if before is None else 1 - MEMORY
                self.reverse_kl[place] = _towards(before or 0.0, block.reverse_kl, share)
                self.surplus[place] = _towards(self.surplus[place], block.surplus or 0.0, share)
        self.highest = max(self.highest, self.reverse_kl[0] or 0.0)

    def _add_gradients(self, found: Gradients) -> None:
        self.steps += 1
        for b, row in enumerate(found.products):
            for c, product in enumerate(row):
                if found.pairs[b][c]:
                    self.products[b][c] = _towards(self.products[b][c], product, 1 - MEMORY)
            if found.pairs[b][b]:
                self.noises[b] = _towards(self.noises[b], found.noise[b], 1 - MEMORY)

    def signal(self) -> float:
        """Returns the squared norm of the expected gradient of a rollout."""
        return sum(map(sum, self.products))

    def noise(self) -> float:
        """Returns the variance of a rollout's gradient, blocks taken as independent."""
        return sum(self.noises)

    def divergence(self, blocks: int) -> float:
        """Returns the mean divergence of the first blocks."""
        known = [value for value in self.reverse_kl[:blocks] if value is not None]
        return sum(known) / max(1, len(known))

    def misleads(self, block: int) -> bool:
        """Tells whether the teacher is less certain than the student in a block, by more than half of their divergence,
        and its gradient is not aligned with that of all blocks before. Where little is left to learn, it is not."""
        divergence = self.reverse_kl[block]
        if divergence is None or divergence < self.highest / STRIDES:
            return False
        return self.surplus[block] > HALF * divergence and self.alignment(range(block), block) < HALF

    def alignment(self, others: Sequence[int], block: int) -> float:
        """Returns the cosine of the expected gradients of a block and of others together; 0 without a signal."""
        across = sum(self.products[other][block] for other in others)
        theirs = sum(self.products[a][b] for a in others for b in others)
        own = self.products[block][block]
        return float(across / (theirs * own) ** 0.5) if theirs > 0 and own > 0 else 0.0

    def forget(self, block: int) -> None:
        """Forgets a block, which is to be looked at anew."""
        self.reverse_kl[block], self.surplus[block], self.noises[block] = None, 0.0, 0.0
        for other in range(STRIDES):
            self.products[block][other] = self.products[other][block] = 0.0


def _towards(old: float, new: float, share: float) -> float:
    return old + share * (new - old)
