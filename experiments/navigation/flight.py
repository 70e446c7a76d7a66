"""Keeps the trajectories that a step leaves unfinished, because they continue in the next one."""

import torch

from experiments.navigation.course import STEPS, Course, Trajectories
from experiments.navigation.policy import Policy
from hopd.horizon import Decision


class Flight:
    """Extends trajectories as a controller decides, `per_step` of them unless a decision has another number."""

    def __init__(self, course: Course, per_step: int):
        self.course, self.per_step = course, per_step
        self.flying: dict[tuple[int, int], Trajectories] = {}  # by their length, and that at which they end
        self.opened = 0  # slots in which trajectories continue

    @property
    def actions(self) -> int:
        """Returns how many actions the unfinished trajectories have."""
        return sum(len(taken) * taken.length for taken in self.flying.values())

    def step(self, policy: Policy, decision: Decision, generator: torch.Generator) -> list[Trajectories]:
        """Returns the trajectories that ended in this step, one group for each length."""
        groups = [(end, taken) for (_, end), taken in self.flying.items()]
        groups += [(end, Trajectories.begin(rollouts)) for end, rollouts in self._new(decision).items()]
        ended: dict[int, list[Trajectories]] = {}
        going: dict[tuple[int, int], list[Trajectories]] = {}
        for end, taken in groups:
            left = end - taken.length
            more = min(left, decision.tokens) if decision.continues else left
            extended = self.course.extend(policy, taken, more, generator)
            if more == left:
                ended.setdefault(end, []).append(extended)
            else:
                going.setdefault((extended.length, end), []).append(extended)
        self.flying = {key: Trajectories.together(parts) for key, parts in going.items()}
        return [Trajectories.together(parts) for parts in ended.values()]

    def _new(self, decision: Decision) -> dict[int, int]:
        """Returns how many trajectories begin, by the length at which they end; the first of slots that open together
        end after 1, 2, … strides, so that as many end in each step from the first on."""
        cut, whole = decision.parts(self.per_step)
        end, flying = decision.end or STEPS, sum(len(taken) for taken in self.flying.values())
        ends = [decision.tokens] * (cut - max(0, flying - whole)) + [end] * max(0, whole - flying)
        if decision.continues:
            opening, strides = max(0, whole - self.opened), -(-end // decision.tokens)
            for place in range(opening):
                ends[-1 - place] = min(end, decision.tokens * (1 + place * strides // opening))
            self.opened = max(whole, flying)
        return {length: ends.count(length) for length in dict.fromkeys(ends)}
