"""Runs the evaluation that a recipe asks for, on the student's current weights.

It knows the full length, and not the horizon.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

from hopd.errors import RecipeError
from hopd.evaluation.accuracy import Accuracy, measure
from hopd.evaluation.divergence import Divergence, measure_divergence
from hopd.evaluation.evaluation import Evaluation
from hopd.model import LanguageModel
from hopd.processes import Processes
from hopd.recipe import EvaluationSection
from hopd.rollout import Engine, NativeEngine, Prompt, Rollout, Sampling, answers_of
from hopd.tasks import Outcome, PromptSet
from hopd.tasks.problem import ManyAnswers, outcomes

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
        if settings.measure == "accuracy":
            prompts.check([])  # a task that cannot check answers must fail now, not after training
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
        checked: list[Outcome] = []
        if self.settings.measure == "divergence":
            assert self.teacher is not None
            rollouts: Sequence[Rollout] = self.answers
            with self.student.sharding.unsharded():
                measured = measure_divergence(self.student, self.teacher, rollouts)
        else:
            rollouts = self._ordered(self.engine.sample(*self._asked, self.settings.samples))
            checked = self._check(rollouts)
            measured = measure(rollouts, checked, self.settings.samples)
        scores = {"problems": self.prompts.fingerprint, "scores": [round(score, 6) for score in measured.scores]}
        samples = [self._readable(*each) for each in zip_longest(rollouts[:SAMPLES_KEPT], checked[:SAMPLES_KEPT])]
        return Measured(measured, scores, samples)

    def check(self) -> Iterator[str]:
        """Tries the check on an empty response before the run, and yields a sentence for each thing about the answers
        that a person should know. All processes must call it together; the first one looks."""
        lines: list[str] = []
        with self.processes.together():
            if self.settings.measure == "accuracy" and self.processes.is_first:
                lines += self._remarks()
        yield from lines

    def _remarks(self) -> Iterator[str]:
        first = self.prompts.prompts[0].id
        if failure := outcomes(self.prompts.task, [(self.prompts.problems[first], "")])[0].failure:
            yield (
                f"evaluation: the check of an empty response to row {first + 1} failed: {failure}. Answers that cannot "
                "be checked score 0 and are counted"
            )
        if isinstance(self.prompts.task, ManyAnswers):
            yield from (f"evaluation: {remark}" for remark in self.prompts.task.remarks())

    def close(self) -> None:
        """Ends the processes that check answers."""
        if isinstance(self.prompts.task, ManyAnswers):
            self.prompts.task.close()

    @cached_property
    def answers(self) -> list[Rollout]:
        """Samples the teacher's own rollouts at the evaluation's temperature, once."""
        assert self.teacher is not None
        return self._ordered(answers_of(NativeEngine(self.teacher, self.settings.rows), *self._asked))

    @property
    def _asked(self) -> tuple[Sequence[Prompt], int, Sampling, int]:
        """Returns what an engine of this process is asked: prompts, most tokens, sampling and seed."""
        mine = self.prompts.prompts[self.processes.rank :: self.processes.size]
        return mine, self.full_tokens, self.settings.sampling, self.settings.seed

    def _ordered(self, made: Sequence[Rollout]) -> list[Rollout]:
        """Returns the rollouts of all processes in the order of the prompts."""
        order = {prompt.id: index for index, prompt in enumerate(self.prompts.prompts)}
        return sorted(self.processes.gather(list(made)), key=lambda r: (order[r.prompt.id], r.sample))

    def _check(self, rollouts: Sequence[Rollout]) -> list[Outcome]:
        """Checks a share of the rollouts here, and returns what all processes found: a time limit that ran out in one
        of them must not run out in the others or not."""
        rank, size = self.processes.rank, self.processes.size
        mine: list[tuple[int, Outcome]] = []
        with self.processes.together():
            mine = list(zip(range(rank, len(rollouts), size), self.prompts.check(rollouts[rank::size]), strict=True))
        return [outcome for _, outcome in sorted(self.processes.gather(mine), key=lambda each: each[0])]

    def _readable(self, rollout: Rollout, outcome: Outcome | None) -> dict[str, Any]:
        problem = self.prompts.problems[rollout.prompt.id]
        line = {"prompt": problem.prompt, "response": self.prompts.text(rollout), "finish": rollout.finish.value}
        scored = {"score": outcome.score} if outcome else {}
        failed = {"failure": outcome.failure} if outcome and outcome.failure else {}
        return line | {"length": rollout.length} | scored | failed
