"""What is looked at before any work: a run that cannot work should say so in its first minute.

`hopd train` runs it, `hopd check` runs it alone. The last look is a real step on a tiny batch, taken back afterwards.
"""

import math
import shutil
import time
from collections.abc import Iterator

import torch

from hopd.errors import ModelError, RecipeError, nearest
from hopd.objective import Detail
from hopd.recipe import Recipe
from hopd.rollout import NativeEngine, Prompt, Rollout, fold
from hopd.rollout.decoding import decoding_note
from hopd.teacher import LocalTeacher
from hopd.training.delivery import Delivery
from hopd.training.distiller import Distiller, check_trackers
from hopd.training.ledger import Account
from hopd.training.memory import estimate_memory
from hopd.training.mismatch import alarm_threshold
from hopd.training.served import check_served
from hopd.training.statistics import StepStatistics

STEPS_SHOWN = 500  # where the number of prompts is not known
TINY_PROMPTS, TINY_TOKENS = 2, 32


def preflight(run: Distiller) -> Iterator[str]:
    """A sentence for every look that was taken; raises a `HopdError` at the first thing that cannot work."""
    yield from check_recipe(run.recipe, run.total_steps)
    yield f"prompts: {len(run.prompts.prompts)}" + (
        f", and {run.prompts.dropped} longer than {run.recipe.rollout.prompt_tokens} tokens dropped"
        if run.prompts.dropped
        else ""
    )
    yield from run.notes
    yield from _check_precision(run)
    _check_teachers(run)
    _check_objective(run)
    yield _check_context(run)
    yield from _check_served(run)
    if isinstance(run.engine, NativeEngine):
        yield decoding_note(run.student)
    if isinstance(run.engine, Delivery):
        yield from run.engine.check(_longest(run))
    with run.whole_to_decode():
        rollouts = run.engine.sample(
            _tiny_prompts(run),
            min(TINY_TOKENS, run.recipe.rollout.full_tokens),
            run.recipe.rollout.sampling,
            fold(run.recipe.seed),
        )
    yield _check_same_model_is_zero(run, rollouts)
    yield _check_real_step(run, rollouts)
    yield f"memory: {estimate_memory(run)}"
    yield _check_disk(run)


def check_recipe(recipe: Recipe, total_steps: int | None = None) -> Iterator[str]:
    """What can be said without models: trackers, and what each stage of the horizon will generate."""
    check_trackers(recipe)
    rollout, steps = recipe.rollout, total_steps or recipe.training.steps
    per_step = rollout.prompts * rollout.samples
    if steps is None:
        yield f"length: {recipe.training.epochs:g} epochs; below, the first {STEPS_SHOWN} steps"
    yield f"a step: {rollout.prompts} prompts × {rollout.samples} = {per_step} rollouts"
    for first, last, low, high in stages(recipe, steps or STEPS_SHOWN):
        tokens = f"{low}" if low == high else f"{low} to {high}"
        yield (
            f"steps {first + 1} to {last + 1}: horizon {tokens} tokens, at most {per_step * high:,} generated a step "
            f"({100 * high / rollout.full_tokens:.0f} % of full rollouts)"
        )
    if recipe.evaluation:
        yield f"evaluation: always to the full length, {rollout.full_tokens} tokens"
    yield f"files: {recipe.directory}/"


def stages(recipe: Recipe, steps: int, at_most: int = 4) -> list[tuple[int, int, int, int]]:
    """(first step, last step, smallest horizon, largest horizon): the constant stretches, or quarters of the run if
    there are more than `at_most`. Of a controller that adapts, what it would do without evidence."""
    controller = recipe.controller()
    horizons = [controller.decide(step).tokens for step in range(steps)]
    starts = [0] + [step for step in range(1, steps) if horizons[step] != horizons[step - 1]]
    if len(starts) > at_most:
        starts = sorted({steps * quarter // at_most for quarter in range(at_most)})
    ends = [start - 1 for start in starts[1:]] + [steps - 1]
    return [
        (start, end, min(horizons[start : end + 1]), max(horizons[start : end + 1]))
        for start, end in zip(starts, ends, strict=True)
    ]


def _tiny_prompts(run: Distiller) -> list[Prompt]:
    """A few of the first step, and one for each teacher, so that all of them score."""
    one_each = {prompt.teacher: prompt for prompt in reversed(run.prompts.prompts)}
    chosen = [*run.order.at(0)[:TINY_PROMPTS], *(one_each.values() if len(one_each) > 1 else ())]
    return list({prompt.id: prompt for prompt in chosen}.values())


def _check_precision(run: Distiller) -> Iterator[str]:
    """Not every CPU has instructions that multiply bf16, and without them it is the slower choice by far."""
    if run.recipe.training.precision == "bf16" and run.student.device.type == "cpu":
        slower = _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)
        if slower > 2:
            yield f"precision: this CPU multiplies bf16 {slower:.0f} times slower than fp32; write precision: fp32"


def _product_seconds(dtype: torch.dtype) -> float:
    a = torch.ones(256, 256, dtype=dtype)
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        a @ a
        taken.append(time.perf_counter() - started)
    return min(taken)


def _check_teachers(run: Distiller) -> None:
    """Every prompt's teacher is one of the recipe's."""
    for prompt in run.prompts.prompts:
        if run.recipe.teachers and prompt.teacher not in run.recipe.teachers:
            raise RecipeError(
                f"prompt {prompt.id} names the teacher {prompt.teacher!r}; the recipe has "
                f"{', '.join(run.recipe.teachers)}{nearest(str(prompt.teacher), run.recipe.teachers)}"
            )


def _check_objective(run: Distiller) -> None:
    objective, gives = run.recipe.objective, run.learner.teacher.gives
    if gives < objective.needs:
        raise RecipeError(
            f"objective {objective.estimator!r} needs the teacher's {objective.needs.name.lower()}, and this teacher "
            f"gives {gives.name.lower()} only; write estimator: sampled, without control_variate"
            + (", or estimator: top_k with candidates: teacher" if gives == Detail.TOP_K else "")
        )
    if objective.estimator == "top_k" and objective.k >= run.student.head.vocabulary:
        raise RecipeError(
            f"objective.k = {objective.k} is not less than the vocabulary of {run.student.head.vocabulary}; "
            "write estimator: full"
        )


def _check_context(run: Distiller) -> str:
    full = run.recipe.rollout.full_tokens
    longest = _longest(run) - full
    for model in (run.student, *run.teachers.values()):
        if model.context is not None and longest + full > model.context:
            raise RecipeError(
                f"the longest prompt ({longest}) and rollout.full_tokens ({full}) make {longest + full} tokens, more "
                f"than the context of {model.name} ({model.context}); write full_tokens: {model.context - longest} or "
                "less, or lower prompt_tokens"
            )
    return f"context: the longest prompt and full length make {longest + full} tokens, which fits"


def _check_served(run: Distiller) -> Iterator[str]:
    for name, teacher in run.learner.served.teachers.items():
        yield from check_served(run.recipe, name, teacher, run.student, _longest(run))


def _longest(run: Distiller) -> int:
    """Tokens of the longest prompt and a full response."""
    return max(len(prompt.ids) for prompt in run.prompts.prompts) + run.recipe.rollout.full_tokens


def _check_same_model_is_zero(run: Distiller, rollouts: list[Rollout]) -> str:
    """Student == teacher must give no loss and no gradient."""
    itself = LocalTeacher(run.student, run.recipe.rollout.temperature)
    worst = 0.0
    for batch in run.learner.batches(rollouts, seed=0):
        with torch.no_grad():
            _, terms = run.learner.loss(batch, itself)
        worst = max(worst, float(terms.loss.abs().max()), float(terms.log_ratio.abs().max()))
    run.ledger.pending = Account()
    if not worst < 1e-3:
        raise ModelError(
            f"self-test: with the student as its own teacher the loss is {worst:.3g}, not 0; the model does not give "
            "the same answer twice"
        )
    return f"self-test: the student as its own teacher has a loss of {worst:.1g}"


def _check_real_step(run: Distiller, rollouts: list[Rollout]) -> str:
    statistics, before = StepStatistics(), run.optimizer.snapshot()
    run.learner.accumulate(rollouts, seed=0, statistics=statistics)
    norm = run.learner.apply(step=0)
    moved = run.sharding.most(run.optimizer.take_back(before), run.processes.device)
    run.ledger.pending = Account()
    loss, mismatch = statistics.mean("loss"), statistics.mean("mismatch")
    if not mismatch <= alarm_threshold(run.recipe):
        raise ModelError(
            f"the engine's log-probs and the learner's are {mismatch:.3g} nats a token apart, above "
            f"rollout.mismatch_alarm = {alarm_threshold(run.recipe):g}: what is sampled is not what is trained"
        )
    if loss == 0 or norm == 0 or moved == 0 or not math.isfinite(moved):
        raise ModelError(
            f"a real step on {len(rollouts)} rollouts has loss {loss:.3g}, gradient norm {norm:.3g} and update "
            f"{moved:.3g}: none may be zero. Are student and teacher the same model?"
        )
    return (
        f"a real step, taken back: loss {loss:.4f}, gradient norm {norm:.3g}, largest update {moved:.2g}; engine and "
        f"learner agree to {mismatch:.1g} nats a token"
    )


def _check_disk(run: Distiller) -> str:
    kept = run.recipe.checkpoint.keep_last + run.recipe.checkpoint.keep_best + 1  # one more while it is written
    needed = kept * 12 * sum(master.numel() for master in run.optimizer.masters.values())
    place = next(path for path in (run.directory.path, *run.directory.path.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    sizes = f"{kept} checkpoints of {needed / kept / 1e9:.2g} GB, {free / 1e9:.3g} GB free"
    if free < needed:
        raise RecipeError(
            f"{place} has no room for {sizes}; make room, lower checkpoint.keep_last, or write another output"
        )
    return f"disk: {sizes}"
