"""Trains teacher and student on their own tasks by REINFORCE, before one is distilled into the other."""

import torch
from torch import nn

from experiments.navigation.course import DISTANCE, STEPS, Course, places
from experiments.navigation.policy import Policy, log_prob
from hopd.objective.credit import discounted_credit
from hopd.objective.estimator import sampled

LEARNT = 0.99  # success at which a policy knows its task
COLLISION = 5.0  # what an obstacle costs, in distances
MARGIN = 0.5  # and this close to it


def reinforce(
    policy: Policy,
    course: Course,
    steps: int,
    seed: int,
    rollouts: int = 256,
    learning_rate: float = 1e-3,
    discount: float = 0.95,
    every: int = 25,
    at_least: int = 0,
) -> float:
    """Trains `policy` in place until it succeeds in `LEARNT` of 1024 rollouts, and returns its success.

    Success is measured each `every` steps, from step `at_least` on; training ends after `steps` in any case. The
    reward of an action is minus the remaining distance, relative to the distance at the start, and minus `COLLISION`
    inside the obstacle or closer to it than `MARGIN`: a policy that skims it leaves its student no room for error.
    The baseline of a return is the mean over all rollouts at that time.
    """
    assert isinstance(policy, nn.Module)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate)
    row, position = places(rollouts, STEPS)
    success = 0.0
    for step in range(1, steps + 1):
        taken = course.sample(policy, rollouts, STEPS, generator)
        reward = -course.distance(taken.positions) / DISTANCE - COLLISION * course.hits(taken.positions, MARGIN)
        returns = discounted_credit(reward.flatten(), row, position, discount).view(rollouts, STEPS)
        advantage = (returns - returns.mean(0)) / returns.std(0).clamp(min=1e-6)
        loss = sampled(log_prob(policy.whole(taken.observations), taken.actions).flatten(), advantage.flatten()).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        if step % every == 0 and step >= at_least:
            success = float(course.success(course.sample(policy, 1024, STEPS, generator).positions).float().mean())
            if success >= LEARNT:
                break
    return success
