"""Distils one Gaussian policy into another, on-policy: the loop of the language models, with other policies."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from experiments.navigation.course import STEPS, Course, Trajectories, places
from experiments.navigation.evidence import LastMatrix, evidence
from experiments.navigation.flight import Flight
from experiments.navigation.policy import Gaussian, Policy, TransformerPolicy, log_prob
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
    serial_tokens: int
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
    costs, flight = Ledger(ledger, clock=time.process_time), Flight(course, rollouts)
    watched = None
    if isinstance(student, TransformerPolicy) and getattr(controller, "sketches", False):
        watched = LastMatrix(student.last_matrix)
    curve = [Point(0, 0, _success(student, course, evaluation), 0, 0, 0.0)]
    for step in range(steps):
        if schedule == "linear":
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        decision = controller.decide(step)
        with costs.phase("rollout"):
            before = flight.actions
            groups = flight.step(student, decision, sampling)
            ended = sum(len(taken) * taken.length for taken in groups)
            generated = flight.actions + ended - before
        with costs.phase("teacher"), torch.no_grad():
            theirs = [teacher.whole(taken.observations) for taken in groups]
        with costs.phase("update"):
            mine = [student.whole(taken.observations) for taken in groups]
            pairs = list(zip(mine, theirs, strict=True))
            if groups:
                losses = [_loss(taken, *pair, gamma).sum() for taken, pair in zip(groups, pairs, strict=True)]
                optimizer.zero_grad()
                (torch.stack(losses).sum() / ended).backward()
                nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
            controller.observe(evidence(step, decision, pairs, watched.sums(ended) if watched else None))
        costs.add(
            generated_tokens=generated,
            serial_tokens=decision.tokens if decision.continues else max(taken.length for taken in groups),
            scored_tokens=ended,
            trained_tokens=ended,
            full_rollouts_tokens=sum(map(len, groups)) * STEPS,
        )
        costs.commit(Processes())
        if (step + 1) % every == 0:
            spent = costs.run
            success = _success(student, course, evaluation)
            cost = spent.generated_tokens, spent.serial_tokens, spent.training_seconds
            curve.append(Point(step + 1, decision.tokens, success, *cost))
    return curve


def as_json(curve: Curve) -> list[dict[str, float]]:
    """Returns the curve as JSON can hold it."""
    return [asdict(point) | {"seconds": round(point.seconds, 2), "success": round(point.success, 4)} for point in curve]


def _loss(taken: Trajectories, student: Gaussian, teacher: Gaussian, gamma: float) -> Float[Tensor, " N"]:
    """Returns the loss of each action of a group, in a row."""
    student_log_prob, teacher_log_prob = (log_prob(policy, taken.actions).flatten() for policy in (student, teacher))
    row, position = places(len(taken), taken.length)
    log_ratio = (teacher_log_prob - student_log_prob).detach()
    return sampled(student_log_prob, discounted_credit(log_ratio, row, position, gamma))


def _success(policy: Policy, course: Course, generator: torch.Generator) -> float:
    return float(course.success(course.sample(policy, EVALUATED, STEPS, generator).positions).float().mean())
