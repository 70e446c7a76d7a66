"""Makes the evaluator of a recipe, for a run or for a model alone."""

from dataclasses import replace

from hopd.assembly.models import end_at, load_source
from hopd.assembly.prompts import build_prompts
from hopd.errors import RecipeError
from hopd.evaluation import Accuracy, Divergence, Evaluator
from hopd.model import LanguageModel, is_adapters, load
from hopd.model.vocabulary import share_vocabulary
from hopd.processes import Processes
from hopd.recipe import ModelSource, Recipe
from hopd.rollout import Engine, NativeEngine


def build_evaluator(
    recipe: Recipe,
    student: LanguageModel,
    teacher: LanguageModel | None,
    processes: Processes,
    engine: Engine | None = None,
) -> Evaluator | None:
    """Returns None where the recipe has no evaluation. Without an `engine` the native one samples, with the
    evaluation's own number of rows. Raises `RecipeError` and `TaskError`."""
    settings, rollout = recipe.evaluation, recipe.rollout
    if settings is None:
        return None
    readers: dict[str | None, LanguageModel] = {}
    if teacher is not None and settings.measure == "divergence":
        readers[None] = teacher
    own = recipe.own_prompts if readers else {}
    prompts = replace(build_prompts(settings.task, student, rollout, readers, own), stop=student.stop)
    engine = engine or NativeEngine(student, settings.rows)
    return Evaluator(settings, prompts, student, rollout.full_tokens, engine, processes, teacher)


def evaluate_model(source: str, recipe: Recipe, greedy: bool = False) -> Accuracy | Divergence:
    """Measures a model from anywhere as the recipe's evaluation says: `hopd eval`. Raises a `HopdError`."""
    settings = recipe.evaluation
    if settings is None:
        raise RecipeError("the recipe has no evaluation section; it says what a model is evaluated on")
    if greedy:
        recipe = recipe.with_changes(evaluation=settings.model_dump() | {"temperature": 0.0, "samples": 1})
    processes = Processes.start()
    student = load(
        source,
        device=processes.device,
        layers=recipe.student.layers if is_adapters(source) else None,
        trust_remote_code=recipe.student.trust_remote_code,
        quantised=True,
    )
    teacher = None
    if settings.measure == "divergence" and isinstance(recipe.teacher, ModelSource):
        teacher = load_source(recipe.teacher, processes.device, quantised=True)
        share_vocabulary(student, [teacher])
    end_at(recipe, student, *([teacher] if teacher else []))
    evaluator = build_evaluator(recipe, student, teacher, processes)
    assert evaluator is not None
    try:
        return evaluator.run().measure
    finally:
        evaluator.close()
