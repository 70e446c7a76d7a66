"""On-policy distillation of one Gaussian policy into another: the loop of the language models, with other policies."""

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
from hopd.training.ledger import Ledger

EVALUATED = 256  # rollouts of an evaluation, always of full length ("success@256")


@dataclass(frozen=True)
class Point:
    """An evaluation: success after so many steps, and what they had cost; `seconds` are the processor's."""

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
    """The student's success on `course` (the teacher's task), before the first step and `every` so many steps.

    `gamma` as in Eq. 5; `ledger` is the file of its costs. Evaluation draws from a generator of its own, so that how
    often it is done changes nothing.
    """
    assert isinstance(student, nn.Module)
    drawn, looked = (torch.Generator().manual_seed(2 * seed + i) for i in range(2))
    optimizer = torch.optim.Adam(student.parameters(), lr=learning_rate)
    costs = Ledger(ledger, clock=time.process_time)
    curve = [Point(0, 0, _success(student, course, looked), 0, 0.0)]
    for step in range(steps):
        if schedule == "linear":
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        decision = controller.decide(step)
        with costs.phase("rollout"):
            taken = course.sample(student, rollouts, decision.tokens, drawn)
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
            generated_tokens=tokens, scored_tokens=tokens, trained_tokens=tokens, full_rollouts_tokens=rollouts * STEPS
        )
        costs.commit(lambda counts: counts)
        if (step + 1) % every == 0:
            spent = costs.run
            success = _success(student, course, looked)
            curve.append(Point(step + 1, decision.tokens, success, spent.generated_tokens, spent.training_seconds))
    return curve


def as_json(curve: Curve) -> list[dict[str, float]]:
    return [asdict(point) | {"seconds": round(point.seconds, 2), "success": round(point.success, 4)} for point in curve]


def _success(policy: Policy, course: Course, generator: torch.Generator) -> float:
    return float(course.success(course.sample(policy, EVALUATED, STEPS, generator).positions).float().mean())
