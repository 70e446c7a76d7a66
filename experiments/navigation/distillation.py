"""Distils one Gaussian policy into another, on-policy: the loop of the language models, with other policies."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from experiments.navigation.course import STEPS, Course, places
from experiments.navigation.policy import Policy, log_prob
from hopd.horizon import Controller
from hopd.objective.credit import discounted_credit
from hopd.objective.estimator import sampled
from hopd.processes import Processes
from hopd.run.ledger import Ledger

EVALUATED = 256  # rollouts of an evaluation, always of full length ("success@256")


@dataclass(frozen=True)
class Point:
    """Records an evaluation: the success after `step` steps, and their cost; `seconds` are processor time."""

    step: int
    horizon: int
    success: float
    generated_tokens: int
    seconds: float


Curve = list[Point]


def distil(
    student: Policy,
    teacher: Policy,
    course: Course,
    controller: Controller,
    steps: int,
    seed: int,
    ledger: Path,
    gamma: float = 0.0,
    rollouts: int = 64,
    learning_rate: float = 1e-3,
    schedule: Literal["constant", "linear"] = "constant",
    every: int = 10,
) -> Curve:
    """Trains `student` in place, and returns its success on `course` (the teacher's task) before the first step and
    after each `every` steps.

    The loss is the sampled reverse KL (mean over tokens), its credit discounted by `gamma` (Eq. 5). `ledger` is the
    file to which costs are written. Evaluation has its own random generator, so how often it happens changes nothing.
    """
    assert isinstance(student, nn.Module)
    sampling, evaluation = (torch.Generator().manual_seed(2 * seed + i) for i in range(2))
    optimizer = torch.optim.Adam(student.parameters(), lr=learning_rate)
    costs = Ledger(ledger, clock=time.process_time)
    curve = [Point(0, 0, _success(student, course, evaluation), 0, 0.0)]
    for step in range(steps):
        if schedule == "linear":
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        decision = controller.decide(step)
        with costs.phase("rollout"):
            taken = course.sample(student, rollouts, decision.tokens, sampling)
        with costs.phase("teacher"), torch.no_grad():
            teacher_log_prob = log_prob(teacher.whole(taken.observations), taken.actions).flatten()
        with costs.phase("update"):
            student_log_prob = log_prob(student.whole(taken.observations), taken.actions).flatten()
            row, position = places(rollouts, decision.tokens)
            log_ratio = (teacher_log_prob - student_log_prob).detach()
            loss = sampled(student_log_prob, discounted_credit(log_ratio, row, position, gamma)).sum() / len(row)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
        tokens = rollouts * decision.tokens
        costs.add(
            generated_tokens=tokens,
            serial_tokens=decision.tokens,
            scored_tokens=tokens,
            trained_tokens=tokens,
            full_rollouts_tokens=rollouts * STEPS,
        )
        costs.commit(Processes())
        if (step + 1) % every == 0:
            spent = costs.run
            success = _success(student, course, evaluation)
            curve.append(Point(step + 1, decision.tokens, success, spent.generated_tokens, spent.training_seconds))
    return curve


def as_json(curve: Curve) -> list[dict[str, float]]:
    """Returns the curve as JSON can hold it."""
    return [asdict(point) | {"seconds": round(point.seconds, 2), "success": round(point.success, 4)} for point in curve]


def _success(policy: Policy, course: Course, generator: torch.Generator) -> float:
    return float(course.success(course.sample(policy, EVALUATED, STEPS, generator).positions).float().mean())
