"""Plans what a run will cost: tokens, serial tokens, FLOPs, seconds and memory of each stage of its horizon, beside
full rollouts.

FLOPs are counted, and how long one takes is measured: real steps at horizons of the run, on one wave of rollouts, as
far as the budget reaches. Between two measured horizons the seconds of a FLOP are interpolated, beyond the longest they
stay as there; memory beyond it grows as its parts do.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import numpy as np

from hopd.assembly import build
from hopd.forecast.calibration import Calibration, Stage
from hopd.forecast.machine import Machine
from hopd.forecast.outlook import stages
from hopd.horizon import Decision
from hopd.recipe import Recipe
from hopd.run.progress import duration

BUDGET_SECONDS = 60.0
LOOKED_AT = 9  # horizons of a stage whose cost is worked out; their mean is the stage's


@dataclass(frozen=True)
class Plan:
    """Compares stages with full rollouts: `full` is what the same number of steps would cost with full rollouts.
    `measured` are the horizons of the calibration, which took `calibration_seconds`, and `machine` is fitted to its
    steps, the worst of which it misses by the share `machine_error`. Evaluations and checkpoints are in `memory`, and
    not in seconds."""

    stages: list[Stage]
    full: Stage
    memory: float
    measured: list[int]
    calibration_seconds: float
    machine: Machine
    machine_error: float

    @property
    def seconds(self) -> float:
        """Returns the seconds of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def flops(self) -> float:
        """Returns the FLOPs of all stages."""
        return sum(stage.flops for stage in self.stages)

    @property
    def tokens(self) -> float:
        """Returns the tokens that the student generates in all stages."""
        return sum(stage.tokens for stage in self.stages)

    @property
    def serial_tokens(self) -> float:
        """Returns the tokens of the longest rollout of each step, added up over all stages."""
        return sum(stage.serial_tokens for stage in self.stages)

    @property
    def width(self) -> float | None:
        """Returns how many rollouts' tokens take as long as one serial token, if both take time."""
        a_token = self.machine.b * self.full.flops / self.full.tokens if self.full.tokens else 0.0
        return self.machine.a / a_token or None if a_token else None

    def lines(self) -> Iterator[str]:
        """Writes a table for people."""
        columns = (
            ("steps", 14),
            ("horizon", 14),
            ("tokens", 12),
            ("serial", 10),
            ("TFLOP", 10),
            ("a step", 10),
            ("time", 14),
            ("memory", 8),
        )
        yield "  ".join(f"{name:>{width}}" for name, width in columns)
        for stage in self.stages:
            yield _line(f"{stage.first + 1} to {stage.last + 1}", stage)
        yield _line("full rollouts", self.full)
        yield (
            f"this run: {self.tokens:,.0f} tokens, {self.serial_tokens:,.0f} serial, {self.flops / 1e12:,.3g} TFLOP, "
            f"{duration(self.seconds)}, that is {100 * self.seconds / self.full.seconds:.0f} % of the time of full "
            f"rollouts; at most {self.memory / 2**30:.2f} GiB; without the time of evaluations and checkpoints"
        )
        yield (
            f"this machine: {self.machine.a:.3g} s for a serial token and {self.machine.b:.3g} s for a FLOP, within "
            f"{100 * self.machine_error:.0f} % of the steps measured; for runs made elsewhere: hopd compare --machine "
            f"{self.machine} …"
        )
        if self.width:
            yield (
                f"a serial token takes it as long as those of {self.width:.3g} rollouts; to spend least of its time: "
                f"horizon: {{controller: adaptive, width: {self.width:.3g}}}"
            )
        longest = max(self.measured)
        beyond = max(self.full.high, *(stage.high for stage in self.stages))
        extrapolated = f"; what lies beyond {longest} is extrapolated" if beyond > longest else ""
        yield (
            f"measured here in {self.calibration_seconds:.0f} s, at horizons "
            f"{', '.join(map(str, self.measured))}{extrapolated}"
        )


def make_plan(recipe: Recipe, budget_seconds: float = BUDGET_SECONDS) -> Plan:
    """Loads the models and takes a few steps with them; writes nothing. Raises what `Distiller` raises."""
    with TemporaryDirectory() as nowhere:
        parts = build(recipe.model_copy(update={"output": nowhere}))
        started = time.perf_counter()
        calibration = Calibration(parts)
        calibration.measure(budget_seconds)
        full = recipe.rollout.full_tokens
        planned = [
            calibration.stage(first, last, [parts.controller.decide(step) for step in _spread(first, last)])
            for first, last, _, _ in stages(parts.controller, parts.total_steps)
        ]
        return Plan(
            planned,
            calibration.stage(0, parts.total_steps - 1, [Decision(full, "full rollouts")]),
            max(*(stage.memory for stage in planned), calibration.memory_of_evaluation()),
            [measured.horizon for measured in calibration.measured],
            time.perf_counter() - started,
            *calibration.machine(),
        )


def _line(name: str, stage: Stage) -> str:
    horizon = f"{stage.low}" if stage.low == stage.high else f"{stage.low} to {stage.high}"
    return (
        f"{name:>14}  {horizon:>14}  {stage.tokens:>12,.0f}  {stage.serial_tokens:>10,.0f}  "
        f"{stage.flops / 1e12:>10,.3g}  {stage.seconds / stage.steps:>8.3g} s  {duration(stage.seconds):>14}  "
        f"{stage.memory / 2**30:>4.2f} GiB"
    )


def _spread(first: int, last: int) -> list[int]:
    """Picks some steps of a stage, its ends among them."""
    return sorted({round(step) for step in np.linspace(first, last, LOOKED_AT)})
