"""Computes and applies one optimiser step from a set of rollouts.

It receives finished rollouts and a loss window. It does not know how far rollouts go, the engine or the recipe.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hopd.compute.layers import fast_layers
from hopd.errors import NonFiniteLoss
from hopd.horizon import Window
from hopd.horizon.window import Span
from hopd.model import LanguageModel
from hopd.model.flops import PassCost
from hopd.objective import Objective, StopClass, TokenStatistics, distillation_loss
from hopd.processes import Processes
from hopd.rollout import Batch, Rollout, Stream, fold, pack, uniform
from hopd.run.ledger import Ledger
from hopd.teacher import BaseTeacher, Teacher
from hopd.teacher.remote_teachers import RemoteTeachers, remote_by_name
from hopd.training.optimizer import MasterOptimizer
from hopd.training.sketch import Sketch
from hopd.training.statistics import StepStatistics


@dataclass
class Learner:
    """Trains the student on rollouts. `teacher_costs` are those of the local teachers, by name (None: the only one).
    With `compares` both models' certainty is measured for the controller; `sketch` sketches gradients for it (None: it
    does not ask for them)."""

    student: LanguageModel
    teacher: Teacher
    student_cost: PassCost
    teacher_costs: Mapping[str | None, PassCost]
    objective: Objective
    window: Window
    optimizer: MasterOptimizer
    ledger: Ledger
    processes: Processes
    temperature: float
    tokens_per_batch: int
    compares: bool = False
    sketch: Sketch | None = None
    remote: RemoteTeachers = field(init=False)

    def __post_init__(self) -> None:
        self.remote = RemoteTeachers(remote_by_name(self.teacher), self.processes)

    def fetch(self, mini_batches: Sequence[Sequence[Rollout]], seed: int) -> None:
        """Lets remote teachers score a whole step before its first update. Raises `TeacherUnavailable`."""
        if self.remote.teachers:
            with self.ledger.phase("teacher"):
                self.remote.fetch([batch for rollouts in mini_batches for batch in self.batches(rollouts, seed)])

    def accumulate(self, rollouts: Sequence[Rollout], seed: int, statistics: StepStatistics) -> None:
        """Adds up the gradient of the loss: its sum over loss tokens / their number in the whole optimiser step.

        That number counts all micro-batches and all processes.

        Raises `NonFiniteLoss`, which names the rollout.
        """
        batches = [self.remote.without_gaps(batch) for batch in self.batches(rollouts, seed)]
        own = sum(float((batch.at.weight > 0).sum()) for batch in batches)
        count = self.processes.total(own)
        # Processes that share a sharded model gather its layers together, so all must run equally many passes.
        passes = int(self.processes.highest(len(batches))) if self.student.sharding.units else len(batches)
        # The passes of a sharded model need the other processes; an error of one then ends all by their launcher.
        together = nullcontext() if self.student.sharding.units else self.processes.together()
        if self.sketch and statistics.gradients is None:
            statistics.gradients = self.sketch.sums(self.student.device)
        watching = self.sketch.watching() if self.sketch else nullcontext()
        with fast_layers(self.student.backbone), together, watching:
            for batch in batches:
                total, terms = self.loss(batch)
                if not torch.isfinite(total):
                    raise NonFiniteLoss(_first_non_finite(batch, terms))
                with self.ledger.phase("update"):
                    (total / count).backward()
                    if self.sketch and statistics.gradients and not batch.is_reference:
                        self.sketch.add(batch, count, statistics.gradients)
                if batch.is_reference:
                    statistics.add_reference_tokens(batch.at, terms)
                else:
                    statistics.add_tokens(batch.at, terms)
                self._account(batch)
            for _ in range(passes - len(batches)):
                self._dummy_pass()

    def apply(self, step: int) -> float:
        """Updates the student and returns the gradient's norm.

        Raises `NonFiniteLoss`, and leaves the student unchanged, if the norm is not finite.
        """
        with self.ledger.phase("update"):
            self.student.sharding.reshard()
            norm = self.optimizer.step(step, self.processes)
        if not math.isfinite(norm):
            raise NonFiniteLoss(f"the gradient of step {step} has the norm {norm}, though every loss was finite")
        return norm

    def batches(self, rollouts: Sequence[Rollout], seed: int) -> list[Batch]:
        """Packs rollouts into micro-batches, with the tokens that the loss window keeps. Reference
        answers are packed apart.

        `seed` is the step's: a random window draws its place from it, the prompt and the sample.
        """
        prompts = torch.tensor([rollout.prompt.id for rollout in rollouts], dtype=torch.long)
        samples = torch.tensor([rollout.sample for rollout in rollouts], dtype=torch.long)
        draws = uniform(fold(seed, Stream.WINDOW), prompts, samples, torch.zeros(1, dtype=torch.long))[:, 0].tolist()
        spans = [self.window.span(rollout.length, u) for rollout, u in zip(rollouts, draws, strict=True)]
        parts = [[one for one in zip(rollouts, spans, strict=True) if one[0].is_reference is r] for r in (False, True)]
        return [batch for part in parts for batch in self._packed(part)]

    def _packed(self, rows: Sequence[tuple[Rollout, Span]]) -> list[Batch]:
        rollouts, spans = [rollout for rollout, _ in rows], [span for _, span in rows]
        device, whole = self.student.device, self.objective.gamma > 0
        return pack(rollouts, spans, self.tokens_per_batch, device, whole_response=whole)

    def loss(self, batch: Batch, teacher: Teacher | None = None) -> tuple[Tensor, TokenStatistics]:
        """Returns the sum of the loss over the loss tokens of one micro-batch, and the statistics of each token.

        `teacher` replaces the learner's own.
        """
        with self.ledger.phase("teacher"):
            signal = (teacher or self.teacher).score(batch)
        with self.ledger.phase("update"):
            hidden = batch.states(self.student.hidden(batch.ids))
            head = self.student.head
            stop = StopClass.of(self.objective, self.student.stop_ids, head.vocabulary)
            return distillation_loss(
                self.objective, head, hidden, signal, batch.at, self.temperature, compares=self.compares, stop=stop
            )

    def _dummy_pass(self) -> None:
        """Runs a forward and backward pass with a zero gradient, because other processes have more micro-batches."""
        with self.ledger.phase("update"):
            ids = torch.zeros(1, 1, dtype=torch.long, device=self.student.device)
            if isinstance(self.teacher, BaseTeacher):  # its forward pass gathers the layers of the same model
                with torch.no_grad():
                    self.student.hidden(ids)
            hidden = self.student.hidden(ids)
            (0 * self.student.head.logits(hidden).sum()).backward()

    def flops(self, batch: Batch) -> dict[str, float]:
        """Returns the FLOPs of one micro-batch by phase, without those of remote teachers."""
        positions = batch.at.tokens.numel()
        student, lengths = self.student_cost, batch.lengths
        recomputed = student.forward(lengths, 0) if self.student.recomputes else 0.0
        credit = student.head * positions if self.objective.gamma else 0.0
        teacher, seen = self.teacher_costs.get(batch.teacher), batch.of_teacher.lengths
        return {
            "update": student.forward(lengths, positions) + student.backward(lengths, positions) + recomputed + credit,
            "teacher": teacher.forward(seen, positions) if teacher else 0.0,
        }

    def _account(self, batch: Batch) -> None:
        for phase, flops in self.flops(batch).items():
            self.ledger.add(phase, flops)
        own = sum(rollout.prompt.own_tokens for rollout in batch.rollouts)
        trained = int((batch.at.weight > 0).sum())
        self.ledger.add(scored_tokens=batch.at.tokens.numel() + own, trained_tokens=trained)


def _first_non_finite(batch: Batch, terms: TokenStatistics) -> str:
    """Describes the first token whose loss is not finite."""
    bad = (~torch.isfinite(terms.loss)).nonzero()
    if len(bad) == 0:
        return (
            f"the loss of a micro-batch is not finite, though each token's is; its first rollout is {batch.rollouts[0]}"
        )
    place = int(bad[0])
    rollout = batch.rollouts[int(batch.at.row[place])]
    return (
        f"the loss is {float(terms.loss[place])} at response token {int(batch.at.position[place])} of {rollout} "
        f"(log-ratio {float(terms.log_ratio[place]):g}, student log-prob {float(terms.log_prob[place]):g}; "
        f"{len(bad)} tokens of the micro-batch are not finite)"
    )
