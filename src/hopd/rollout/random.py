"""Draws counter-based random numbers: one uniform number for each (seed, prompt, sample, position).

Without a generator there is no state: a rollout draws the same numbers in every batch, on every device, after a resume,
and with every horizon (a shorter rollout is a prefix of a longer one).

The hash chains SplitMix64's finalizer (Steele, Lea & Flood, 2014) over the four counters.
"""

from collections.abc import Iterable
from enum import IntEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Stream(IntEnum):
    """Names the other random streams: each is a counter after a seed, so that no two streams draw the same numbers."""

    WINDOW = 1  # after a step's seed: where a random loss window begins
    SHUFFLE = 2  # after the run's seed, before the epoch: the order of the prompts
    ADAPTERS = 2**62  # after the run's seed, where other counters are steps: the first weights of LoRA's adapters
    SKETCH = 2**62 + 1  # after the run's seed, as well: the signs that sketch gradients
    REFERENCE = 2**62 + 2  # after the run's seed, before a group of rollouts: which of them is a reference answer


_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def uniform(
    seed: int | Int[Tensor, " R"],
    prompt: Int[Tensor, " R"],
    sample: Int[Tensor, " R"],
    positions: Int[Tensor, " T"] | Int[Tensor, "R T"],
) -> Float[Tensor, "R T"]:
    """Returns numbers in [0, 1) with 53 random bits, as float64. `seed` is one for all, or from `seeds`, one a row."""
    folded = _signed(fold(seed)) if isinstance(seed, int) else seed
    key = _mix(_mix(prompt + folded) + sample)
    bits = _mix(_mix(key[:, None] + _signed(_GOLDEN) * positions))
    return _shift(bits, 11).double() * 2.0**-53


def fold(*counters: int) -> int:
    """Combines counters, such as the run's seed and the step, into one 64-bit seed."""
    state = 0
    for counter in counters:
        state = (state + counter + _GOLDEN) & _MASK
        for shift, factor in _ROUNDS:
            state = ((state ^ (state >> shift)) * factor) & _MASK
        state ^= state >> 31
    return state


def seeds(each: Iterable[int]) -> Int[Tensor, " R"]:
    """Returns the seeds of rows as `uniform` takes them."""
    return torch.tensor([_signed(fold(seed)) for seed in each], dtype=torch.long)


def _mix(x: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
    x = x + _signed(_GOLDEN)
    for shift, factor in _ROUNDS:
        x = (x ^ _shift(x, shift)) * _signed(factor)
    return x ^ _shift(x, 31)


def _shift(x: Int[Tensor, "*N"], bits: int) -> Int[Tensor, "*N"]:
    """Shifts right logically: torch's shift is arithmetic, so the copies of the sign are masked out."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
