"""The evaluation that a recipe asks for, ready to be run on the student as it stands."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from hopd.errors import RecipeError
from hopd.evaluation.accuracy import Accuracy, measure
from hopd.evaluation.divergence import Divergence, measure_divergence
from hopd.model import LanguageModel, is_adapters, load
from hopd.recipe import EvaluationSection, ModelSource, Recipe
from hopd.rollout import Engine, NativeEngine, Prompt, Rollout, Sampling
from hopd.tasks import PromptSet, build_prompts


class Evaluator:
    """Knows the full length and not the horizon. Prompts are shared out over the processes. `engine` samples from the
    student; the native one, if there is none."""

    def __init__(
        self,
        settings: EvaluationSection,
        prompts: PromptSet,
        student: LanguageModel,
        full_tokens: int,
        processes: Accelerator,
        teacher: LanguageModel | None = None,
        engine: Engine | None = None,
    ):
        if settings.measure == "divergence" and teacher is None:
            raise RecipeError("evaluation.measure: divergence needs one local teacher; write measure: accuracy")
        if settings.measure == "accuracy":  # whether answers can be checked is better known now than at the end
            prompts.task.score(next(iter(prompts.problems.values())), "")
        self.settings, self.prompts, self.student, self.teacher = settings, prompts, student, teacher
        self.full_tokens, self.processes = full_tokens, processes
        self.engine = engine or NativeEngine(student, settings.rows)

    def run(self) -> tuple[Accuracy | Divergence, Sequence[Rollout]]:
        """The measure, the same on every process, and the rollouts that it was taken from."""
        if self.settings.measure == "divergence":
            assert self.teacher is not None
            return measure_divergence(self.student, self.teacher, self.answers), self.answers
        rollouts = self._sample(self.engine, self.settings.sampling, self.settings.samples)
        return measure(rollouts, self.prompts, self.settings.samples), rollouts

    def sample_line(self, rollout: Rollout) -> dict[str, Any]:
        """One rollout for people to read."""
        problem = self.prompts.problems[rollout.prompt.id]
        line = {"prompt": problem.prompt, "response": self.prompts.text(rollout), "finish": rollout.finish.value}
        scored = {} if self.settings.measure == "divergence" else {"score": self.prompts.score(rollout)}
        return line | {"length": rollout.length} | scored

    def scores_line(self, measured: Accuracy | Divergence) -> dict[str, Any]:
        """The score of each problem, and a mark of what was asked: scores of other problems are no pairs of these."""
        return {"problems": self.prompts.mark, "scores": [round(score, 6) for score in measured.scores]}

    @cached_property
    def answers(self) -> list[Rollout]:
        """The teacher's own, at the evaluation's temperature; made once."""
        assert self.teacher is not None
        return self._sample(NativeEngine(self.teacher, self.settings.rows), self.settings.sampling, 1)

    def _sample(self, engine: Engine, sampling: Sampling, samples: int) -> list[Rollout]:
        mine: Sequence[Prompt] = self.prompts.prompts[self.processes.process_index :: self.processes.num_processes]
        made = engine.sample(mine, self.full_tokens, sampling, self.settings.seed, samples)
        order = {prompt.id: index for index, prompt in enumerate(self.prompts.prompts)}
        return sorted(gather_object(made), key=lambda r: (order[r.prompt.id], r.sample))


def evaluate_model(source: str, recipe: Recipe, greedy: bool = False) -> Accuracy | Divergence:
    """`hopd eval`: a model from anywhere, measured as the recipe's evaluation says."""
    if recipe.evaluation is None:
        raise RecipeError("the recipe has no evaluation section; it says what a model is evaluated on")
    settings = recipe.evaluation
    if greedy:
        settings = settings.model_copy(update={"temperature": 0.0, "samples": 1})
    processes = Accelerator(cpu=not torch.accelerator.is_available())
    student = load(
        source,
        device=processes.device,
        layers=recipe.student.layers if is_adapters(source) else None,
        trust_remote_code=recipe.student.trust_remote_code,
    )
    teacher = None
    if settings.measure == "divergence" and isinstance(recipe.teacher, ModelSource):
        teacher = load(
            recipe.teacher.model,
            device=processes.device,
            layers=recipe.teacher.layers,
            trust_remote_code=recipe.teacher.trust_remote_code,
        )
    rollout = recipe.rollout
    prompts = build_prompts(settings.task, student.tokenizer, rollout.prompt_tokens, rollout.too_long)
    return Evaluator(settings, prompts, student, rollout.full_tokens, processes, teacher).run()[0]
