"""Runs the evaluation that a recipe asks for, on the student's current weights.

It knows the full length, and not the horizon.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hopd.errors import RecipeError
from hopd.evaluation.accuracy import Accuracy, measure
from hopd.evaluation.divergence import Divergence, measure_divergence
from hopd.evaluation.evaluation import Evaluation
from hopd.model import LanguageModel
from hopd.processes import Processes
from hopd.recipe import EvaluationSection
from hopd.rollout import Engine, NativeEngine, Rollout, Sampling
from hopd.tasks import PromptSet

SAMPLES_KEPT = 4  # rollouts of each evaluation that are written to samples.jsonl


@dataclass(frozen=True)
class Measured:
    """Holds the measure, the scores of each problem with the fingerprint of the problems, and a few rollouts as text.

    It is the same on every process.
    """

    measure: Accuracy | Divergence
    scores: dict[str, Any]
    samples: list[dict[str, Any]]


class Evaluator:
    """Evaluates the student, with the prompts divided among the processes.

    `engine` samples from the student; `teacher` is a local one and answers the prompts for `measure: divergence`.
    Raises `RecipeError` if that measure has no local teacher, or if the task cannot check answers.
    """

    def __init__(
        self,
        settings: EvaluationSection,
        prompts: PromptSet,
        student: LanguageModel,
        full_tokens: int,
        engine: Engine,
        processes: Processes,
        teacher: LanguageModel | None = None,
    ):
        if settings.measure == "divergence" and teacher is None:
            raise RecipeError("evaluation.measure: divergence needs one local teacher; write measure: accuracy")
        if settings.measure == "accuracy":  # a task that cannot check answers must fail now, not after training
            prompts.task.score(next(iter(prompts.problems.values())), "")
        self.settings, self.prompts, self.student, self.teacher = settings, prompts, student, teacher
        self.full_tokens, self.engine, self.processes = full_tokens, engine, processes

    def is_due(self, step: int, total_steps: int, training_flops: float, last: Evaluation | None) -> bool:
        """Tells whether to evaluate after `step` of `total_steps` steps, which cost `training_flops`.

        It is due at the start if the recipe says so, at the end, and in between at the recipe's interval, but not twice
        at one step.
        """
        settings = self.settings
        if last is not None and last.step == step:
            return False
        if step == 0:
            return settings.at_start
        if step == total_steps:
            return True
        if settings.every_flops is not None:
            before = last.training_flops if last else 0.0
            return training_flops // settings.every_flops > before // settings.every_flops
        return settings.every is not None and step % settings.every == 0

    def run(self) -> Measured:
        """Measures the student. All processes must call it together."""
        measured: Accuracy | Divergence
        if self.settings.measure == "divergence":
            assert self.teacher is not None
            rollouts: Sequence[Rollout] = self.answers
            with self.student.sharding.unsharded():
                measured = measure_divergence(self.student, self.teacher, rollouts)
        else:
            rollouts = self._sample(self.engine, self.settings.sampling, self.settings.samples)
            measured = measure(rollouts, self.prompts, self.settings.samples)
        scores = {"problems": self.prompts.fingerprint, "scores": [round(score, 6) for score in measured.scores]}
        return Measured(measured, scores, [self._readable(rollout) for rollout in rollouts[:SAMPLES_KEPT]])

    @cached_property
    def answers(self) -> list[Rollout]:
        """Samples the teacher's own rollouts at the evaluation's temperature, once."""
        assert self.teacher is not None
        return self._sample(NativeEngine(self.teacher, self.settings.rows), self.settings.sampling, 1)

    def _sample(self, engine: Engine, sampling: Sampling, samples: int) -> list[Rollout]:
        mine = self.prompts.prompts[self.processes.rank :: self.processes.size]
        made = engine.sample(mine, self.full_tokens, sampling, self.settings.seed, samples)
        order = {prompt.id: index for index, prompt in enumerate(self.prompts.prompts)}
        return sorted(self.processes.gather(made), key=lambda r: (order[r.prompt.id], r.sample))

    def _readable(self, rollout: Rollout) -> dict[str, Any]:
        problem = self.prompts.problems[rollout.prompt.id]
        line = {"prompt": problem.prompt, "response": self.prompts.text(rollout), "finish": rollout.finish.value}
        scored = {} if self.settings.measure == "divergence" else {"score": self.prompts.score(rollout)}
        return line | {"length": rollout.length} | scored
