"""Models the seconds that training takes on a machine: some for each serial token, some for each FLOP.

It knows neither torch nor how a run is made, so the costs of a run can be turned into the seconds of a machine that
never saw it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from scipy.optimize import nnls

from hopd.errors import RecipeError, nearest


@dataclass(frozen=True)
class Machine:
    """Takes `a` seconds for a serial token, one more token of the longest rollout, and `b` seconds for a training FLOP.

    `b` is for FLOPs and not for tokens, since a token of a larger model costs more and the ledger counts by how much.
    `a` has no such measure: it is the latency of a decoding step of one model on one machine. Raises `RecipeError` if a
    number is negative, or neither is positive.
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        if not (isfinite(self.a) and isfinite(self.b) and min(self.a, self.b) >= 0 and max(self.a, self.b) > 0):
            raise RecipeError(
                f"a machine's a and b are seconds, 0 or more and not both 0; got a={self.a:g} and b={self.b:g}; "
                f"{EXPECTED}"
            )

    @classmethod
    def named(cls, name: str) -> "Machine":
        """Returns one of `MACHINES`. Raises `RecipeError` if there is none of this name."""
        if name not in MACHINES:
            raise RecipeError(f"no machine is named {name!r}{nearest(name, MACHINES)}; {EXPECTED}")
        return MACHINES[name]

    @classmethod
    def parse(cls, text: str) -> "Machine":
        """Reads a name, or `a=0.004,b=2.5e-15` as `str` writes it. Raises `RecipeError` if it is neither."""
        if "=" not in text:
            return cls.named(text)
        pairs = [part.partition("=") for part in text.split(",")]
        try:
            numbers = {name.strip(): float(number) for name, _, number in pairs}
        except ValueError:
            numbers = {}
        if set(numbers) != {"a", "b"} or len(pairs) != 2:
            raise RecipeError(f"{text!r} does not give the numbers a and b, each once; {EXPECTED}")
        return cls(**numbers)

    @classmethod
    def fitted(cls, steps: Sequence[tuple[float, float, float]]) -> "Machine":
        """Fits (serial tokens, training FLOPs, seconds) of measured steps, by least squares of the relative errors.

        Steps with few and with many rollouts tell the two apart: in rollouts of one number both grow alike.
        """
        measured = np.array(steps, dtype=np.float64)
        work, seconds = measured[:, :2], measured[:, 2:]
        unit = work.max(axis=0)  # of comparable size: serial tokens are thousands where FLOPs are 1e15
        (a, b), _ = nnls(work / unit / seconds, np.ones(len(steps)))
        return cls(float(a / unit[0]), float(b / unit[1]))

    def seconds(self, serial_tokens: float, training_flops: float) -> float:
        """Returns the seconds of training, without evaluations, checkpoints and the optimiser's own arithmetic."""
        return self.a * serial_tokens + self.b * training_flops

    def __str__(self) -> str:
        return f"a={self.a:.3g},b={self.b:.3g}"


# From benchmarks/results/gpu.md: R1-Distill-Qwen-1.5B's shape in bf16 on one H200. `a`: a token of 32 concurrent
# sequences takes 4.1 ms after 128 tokens of context, the least (5.8 ms after 4,096, 7.8 after 8,192). `b`: teacher,
# forward, head and backward of 16k tokens reach 379 to 417 TFLOP/s of the FLOPs that the ledger counts. An H100 is the
# same chip with 0.7 times the memory bandwidth (3.35 against 4.8 TB/s), so 3.1 GB of weights take 0.3 ms more to read;
# nothing of hopd was measured on one. Eight are taken to share a step's rollouts and FLOPs evenly: each decodes as one
# does alone, and the exchange of gradients, once a step, is left out.
MACHINES = {
    "h200": Machine(0.0041, 2.5e-15),
    "h100": Machine(0.0044, 2.5e-15),
    "8xh100": Machine(0.0044, 2.5e-15 / 8),
}
"""Machines by name. Their `a` stands for a decoding step of a model of 1.5B parameters, whatever model a run has: for a
tiny one, the seconds are those of a schedule, not of its models."""
EXPECTED = f"write {', '.join(MACHINES)}, or a=SECONDS,b=SECONDS as hopd plan prints them"
