"""Defines where the policies move: a plane with a start, a target, and perhaps an obstacle between them.

An action is a token: a rollout is a sequence of actions, and a horizon asks for the first of them only. The paper
leaves noise, targets and obstacle open. The constants here are our choice, made by the rule that REINFORCE must teach
a policy its own task to at least 99 % success, and never by looking at distillation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from experiments.navigation.policy import Policy

STEPS = 50  # T, in both tasks of the paper
DISTANCE = 10.0  # from the start to every target
REACHED = 1.0  # a rollout succeeds if it ends at most this far from the target, and touched no obstacle


@dataclass(frozen=True)
class Course:
    """Describes a task: its target at `angle` degrees, and how an action moves the policy.

    With `inertia` an action changes the velocity (autoregressive navigation: v' = v + a + z, x' = x + v'), otherwise
    the position (simple navigation: x' = x + a + z). `obstacle` is the radius of a disc half-way to the target, 0 for
    none. A policy observes (task, position, t / T); with inertia it observes the velocity in the position's place, and
    has to infer its position from the history.
    """

    angle: float
    task: float = 0.0
    inertia: bool = False
    obstacle: float = 0.0
    noise: float = 0.01  # σ of z

    @property
    def target(self) -> Float[Tensor, " 2"]:
        """Returns the target's coordinates."""
        radians = math.radians(self.angle)
        return DISTANCE * torch.tensor([math.cos(radians), math.sin(radians)])

    def observe(self, position: Float[Tensor, "R 2"], velocity: Float[Tensor, "R 2"], t: int) -> Float[Tensor, "R 4"]:
        """Returns what a policy sees before action `t`."""
        rows = len(position)
        seen = velocity if self.inertia else position / DISTANCE
        return torch.cat([torch.full((rows, 1), self.task), seen, torch.full((rows, 1), t / STEPS)], dim=-1)

    def sample(self, policy: Policy, rollouts: int, tokens: int, generator: torch.Generator) -> "Trajectories":
        """Samples the first `tokens` actions of each rollout from the policy."""
        return self.extend(policy, Trajectories.begin(rollouts), tokens, generator)

    @torch.no_grad()
    def extend(self, policy: Policy, taken: "Trajectories", tokens: int, generator: torch.Generator) -> "Trajectories":
        """Samples `tokens` further actions of each rollout from the policy, which reads what went before anew."""
        parts = [list(part.unbind(1)) for part in vars(taken).values()]
        observations, actions, positions, velocities = parts
        memory, none = policy.memory(), torch.zeros(len(taken.actions), 2)
        for seen in observations:
            policy.step(seen, memory)
        position, velocity = (positions[-1], velocities[-1]) if positions else (none, none)
        for t in range(len(actions), len(actions) + tokens):
            observations.append(self.observe(position, velocity, t))
            mean, std = policy.step(observations[-1], memory)
            actions.append(mean + std * torch.randn(mean.shape, generator=generator))
            moved = actions[-1] + self.noise * torch.randn(mean.shape, generator=generator)
            velocity = velocity + moved if self.inertia else moved
            position = position + velocity
            positions.append(position)
            velocities.append(velocity)
        return Trajectories(*(torch.stack(part, dim=1) for part in parts))

    def distance(self, positions: Float[Tensor, "R T 2"]) -> Float[Tensor, "R T"]:
        """Returns the distance of each position from the target."""
        distance: Tensor = (positions - self.target).norm(dim=-1)
        return distance

    def hits(self, positions: Float[Tensor, "R T 2"], margin: float = 0.0) -> Bool[Tensor, "R T"]:
        """Tells whether each position is inside the obstacle or closer than `margin` to it; none is without one."""
        distance: Tensor = (positions - self.target / 2).norm(dim=-1)
        return bool(self.obstacle) & (distance < self.obstacle + margin)

    def success(self, positions: Float[Tensor, "R T 2"]) -> Bool[Tensor, " R"]:
        """Tells which rollouts end at the target without touching the obstacle; they must have the full length."""
        assert positions.shape[1] == STEPS, "success is judged at the full length"
        return (self.distance(positions)[:, -1] <= REACHED) & ~self.hits(positions).any(-1)


@dataclass(frozen=True)
class Trajectories:
    """Holds what a policy observed, what it did, where each action led, and at what velocity."""

    observations: Float[Tensor, "R T 4"]
    actions: Float[Tensor, "R T 2"]
    positions: Float[Tensor, "R T 2"]
    velocities: Float[Tensor, "R T 2"]

    @classmethod
    def begin(cls, rollouts: int) -> "Trajectories":
        """Returns rollouts that have no action yet."""
        return cls(*(torch.zeros(rollouts, 0, numbers) for numbers in (4, 2, 2, 2)))

    @classmethod
    def together(cls, groups: Sequence["Trajectories"]) -> "Trajectories":
        """Returns all rollouts of groups that are equally long."""
        columns = zip(*(vars(group).values() for group in groups), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def length(self) -> int:
        """Returns how many actions each rollout has."""
        return self.actions.shape[1]


def places(rollouts: int, tokens: int) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Returns the rollout and the position of each token, in the order of flattened (rollouts, tokens)."""
    row, position = torch.meshgrid(torch.arange(rollouts), torch.arange(tokens), indexing="ij")
    return row.flatten(), position.flatten()
