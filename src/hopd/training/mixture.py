"""Draws which rollouts of a run are reference answers instead of samples, from the seed and a rollout's number."""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

from hopd.rollout import Stream, fold


@dataclass(frozen=True)
class Mixture:
    """Makes `share` of the rollouts reference answers, above 0 and at most 1: λ-mixing (GKD, arXiv:2306.13649), where
    the probability of a sample is λ = 1 − `share`.

    Consecutive rollouts form groups of about 1 / `share`, and each group has one reference answer, at a random place:
    every step has nearly its share, and neither the size of a step nor the number of processes changes the draw.
    """

    share: float
    seed: int

    def is_reference(self, number: int) -> bool:
        """Tells whether rollout `number` of the run, from 0, is a reference answer."""
        share = Fraction(str(self.share))
        group = floor(number * share)
        first, after = ceil(group / share), ceil((group + 1) / share)
        return number == first + fold(self.seed, Stream.REFERENCE, group) % (after - first)
