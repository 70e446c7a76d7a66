"""Says what a recipe asks for, before anything is loaded: it imports neither torch nor transformers."""

from collections.abc import Iterator

from hopd.horizon import Controller, Decision
from hopd.plugin import Plugin
from hopd.recipe import Recipe
from hopd.recipe.plugins import named_code
from hopd.run.files import read_lines
from hopd.run.trackers import check_trackers

STEPS_SHOWN = 500  # where the number of prompts is not known
STEPS_ASKED = 10_000  # a controller is asked for each of them


def check_recipe(
    recipe: Recipe, controller: Controller | None = None, total_steps: int | None = None, imports: bool = True
) -> Iterator[str]:
    """Checks what needs no models, and yields what each stage of the horizon will generate; by the recipe's controller
    or another. Without `imports` a controller of your own is not asked. Raises `RecipeError`."""
    check_trackers(recipe.trackers)
    for key, name in named_code(recipe.model_dump()):
        yield (
            f"code of your own: {key} imports {name}" if imports else f"a run imports {name} ({key}); not checked here"
        )
    rollout, steps = recipe.rollout, total_steps or recipe.training.steps
    per_step = rollout.prompts * rollout.samples
    if steps is None:
        yield f"length: {recipe.training.epochs:g} epochs; below, the first {STEPS_SHOWN} steps"
    elif steps > STEPS_ASKED:
        yield f"length: {steps:,} steps; below, the first {STEPS_ASKED:,} steps"
    yield f"a step: {rollout.prompts} prompts × {rollout.samples} = {per_step} rollouts{_references(recipe)}"
    if imports or controller or not isinstance(recipe.horizon, Plugin):
        yield from _spends(recipe, controller or recipe.controller(), min(steps or STEPS_SHOWN, STEPS_ASKED))
    if recipe.evaluation:
        averaged = ", with the averaged weights" if recipe.training.ema else ""
        yield f"evaluation: always to the full length, {rollout.full_tokens} tokens{averaged}"
    yield f"files: {recipe.directory}/"


def _references(recipe: Recipe) -> str:
    """Says how many of a step's rollouts are reference answers, and where a step has one of them more than once."""
    mixed, samples = recipe.rollout.off_policy, recipe.rollout.samples
    if mixed is None:
        return ""
    said = f", of which {100 * mixed.share:g} % are reference answers, which nobody generates"
    if mixed.share * samples > 1:
        said += f"; a step has that of a prompt {mixed.share * samples:g} times in the mean: write samples: 1 for once"
    return said


def _spends(recipe: Recipe, controller: Controller, steps: int) -> Iterator[str]:
    rollout, per_step = recipe.rollout, recipe.rollout.per_step
    for first, last, low, high in stages(controller, steps):
        tokens = f"{low}" if low == high else f"{low} to {high}"
        decision = controller.decide(first)
        most = max(controller.decide(step).at_most(per_step, rollout.full_tokens) for step in range(first, last + 1))
        most = round(most * rollout.sampled_share)
        bound = "about" if 0 < rollout.sampled_share < 1 else "at most"  # a step may have one reference answer less
        yield (
            f"steps {first + 1} to {last + 1}: horizon {tokens} tokens, {bound} {most:,} generated a step "
            f"({100 * most / (per_step * rollout.full_tokens):.0f} % of full rollouts){_spend(decision)}"
        )


def existing_run(recipe: Recipe) -> Iterator[str]:
    """Yields a sentence if the recipe's directory holds a run already."""
    if (recipe.directory / "recipe.yaml").exists():
        steps = [line["step"] for line in read_lines(recipe.directory / "metrics.jsonl")]
        done = f"{steps[-1] if steps else 0} of {recipe.training.steps or 'more'} steps done"
        yield (
            f"{recipe.directory}/ holds a run, {done}: hopd train refuses to begin it again, and continues it with "
            "--resume; another name begins a new one"
        )


def _spend(decision: Decision) -> str:
    """Describes what is not cut at the horizon, or nothing."""
    if decision.only_cuts:
        return ""
    count = "" if decision.rollouts is None else f", {decision.rollouts} rollouts"
    whole = "" if decision.whole is None or decision.whole == 0 else f", {decision.whole} of them whole"
    return count + whole + (", continued" if decision.continues else "")


def stages(controller: Controller, steps: int, at_most: int = 4) -> list[tuple[int, int, int, int]]:
    """Returns (first step, last step, smallest horizon, largest horizon) of the constant stretches, or of quarters of
    the run if there are more than `at_most`. A controller that adapts gives what it would do without evidence."""
    horizons = [controller.decide(step).tokens for step in range(steps)]
    starts = [0] + [step for step in range(1, steps) if horizons[step] != horizons[step - 1]]
    if len(starts) > at_most:
        starts = sorted({steps * quarter // at_most for quarter in range(at_most)})
    ends = [start - 1 for start in starts[1:]] + [steps - 1]
    return [
        (start, end, min(horizons[start : end + 1]), max(horizons[start : end + 1]))
        for start, end in zip(starts, ends, strict=True)
    ]
