"""Defines where the policies move: a plane with a start, a target, and perhaps an obstacle between them.

An action is a token: a rollout is a sequence of actions, and a horizon asks for the first of them only. The paper
leaves noise, targets and obstacle open. The constants here are our choice, made by the rule that REINFORCE must teach
a policy its own task to at least 99 % success, and never by looking at distillation.
"""

import math
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

    @torch.no_grad()
    def sample(self, policy: Policy, rollouts: int, tokens: int, generator: torch.Generator) -> "Trajectories":
        """Samples the first `tokens` actions of each rollout from the policy."""
        position, velocity, memory = torch.zeros(rollouts, 2), torch.zeros(rollouts, 2), policy.memory()
        observations, actions, positions = [], [], []
        for t in range(tokens):
            observations.append(self.observe(position, velocity, t))
            mean, std = policy.step(observations[-1], memory)
            actions.append(mean + std * torch.randn(mean.shape, generator=generator))
            moved = actions[-1] + self.noise * torch.randn(mean.shape, generator=generator)
            velocity = velocity + moved if self.inertia else moved
            position = position + velocity
            positions.append(position)
        return Trajectories(*(torch.stack(parts, dim=1) for parts in (observations, actions, positions)))

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
    """Holds what a policy observed, what it did, and where each action led."""

    observations: Float[Tensor, "R T 4"]
    actions: Float[Tensor, "R T 2"]
    positions: Float[Tensor, "R T 2"]


def places(rollouts: int, tokens: int) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Returns the rollout and the position of each token, in the order of flattened (rollouts, tokens)."""
    row, position = torch.meshgrid(torch.arange(rollouts), torch.arange(tokens), indexing="ij")
    return row.flatten(), position.flatten()
