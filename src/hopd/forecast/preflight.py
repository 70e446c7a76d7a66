"""Checks a run before any work: one that cannot work should say so in its first minute.

`hopd train` runs it, `hopd check` runs it alone. The last check is a real step on a tiny batch, rolled back afterwards.
"""

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from tempfile import TemporaryFile

import torch

from hopd.assembly import Parts
from hopd.compute.products import multiplies_bf16
from hopd.errors import ModelError, RecipeError, nearest
from hopd.forecast.memory import estimate_memory
from hopd.forecast.outlook import check_recipe
from hopd.forecast.read_back import check_saved
from hopd.forecast.stop_mass import compare_ends
from hopd.objective import Detail, StopClass
from hopd.recipe import Recipe
from hopd.rollout import Prompt, Rollout, fold
from hopd.run.checkpoint import used
from hopd.run.ledger import Account
from hopd.tasks import PromptSet
from hopd.teacher import LocalTeacher, RemoteTeacher, Teacher
from hopd.teacher.remote_teachers import check_remote
from hopd.teacher.teacher import by_name

TINY_PROMPTS, TINY_TOKENS = 2, 32


def preflight(parts: Parts) -> Iterator[str]:
    """Yields a sentence for every check; raises a `HopdError` at the first thing that cannot work."""
    yield from check_recipe(parts.recipe, parts.controller, parts.total_steps)
    yield _counted(parts.prompts, parts.recipe)
    yield from parts.prompts.notes
    yield from _check_evaluation(parts)
    yield from parts.notes
    yield from _check_precision(parts)
    _check_teachers(parts)
    _check_objective(parts)
    yield _check_context(parts)
    yield from _check_remote(parts)
    yield from parts.engine.check(_longest_sampled(parts))
    yield from compare_ends(parts)
    yield from parts.evaluator.check() if parts.evaluator else ()
    tokens = min(TINY_TOKENS, parts.recipe.rollout.full_tokens)
    prompts, seed = _tiny_prompts(parts), fold(parts.recipe.seed)
    rollouts = parts.engine.sample(prompts, tokens, parts.sampling, seed)
    if parts.recipe.rollout.off_policy:
        rollouts += [Rollout.of_reference(prompt, 0, tokens, seed) for prompt in prompts]
    yield _check_same_model_is_zero(parts, rollouts)
    yield _check_real_step(parts, rollouts)
    yield f"memory: {estimate_memory(parts)}"
    yield _check_disk(parts)
    yield check_saved(parts)


def _counted(prompts: PromptSet, recipe: Recipe) -> str:
    dropped = f", and {prompts.dropped} longer than {recipe.rollout.prompt_tokens} tokens dropped"
    return f"prompts: {len(prompts.prompts)}" + (dropped if prompts.dropped else "")


def _tiny_prompts(parts: Parts) -> list[Prompt]:
    """Picks a few prompts of the first step, and one for each teacher, so that all of them score."""
    one_each = {prompt.teacher: prompt for prompt in reversed(parts.prompts.prompts)}
    chosen = [*parts.order.at(0)[:TINY_PROMPTS], *(one_each.values() if len(one_each) > 1 else ())]
    return list({prompt.id: prompt for prompt in chosen}.values())


def _check_precision(parts: Parts) -> Iterator[str]:
    """Warns of a CPU that has no instructions for bf16: there it is the slower choice by far."""
    if parts.recipe.training.precision == "bf16" and parts.student.device.type == "cpu" and not multiplies_bf16():
        yield "precision: this CPU has no instructions that multiply bf16; write precision: fp32"


def _check_teachers(parts: Parts) -> None:
    """Raises `RecipeError` unless every prompt's teacher is one of the recipe's."""
    for prompt in parts.prompts.prompts:
        if parts.recipe.teachers and prompt.teacher not in parts.recipe.teachers:
            raise RecipeError(
                f"{parts.prompts.where(prompt.id)} names the teacher {prompt.teacher!r}; the recipe has "
                f"{', '.join(parts.recipe.teachers)}{nearest(str(prompt.teacher), parts.recipe.teachers)}"
            )


def _check_objective(parts: Parts) -> None:
    objective, gives = parts.recipe.objective, parts.learner.teacher.gives
    if gives < objective.needs:
        raise RecipeError(
            f"objective {objective.estimator!r} needs the teacher's {objective.needs.name.lower()}, and this teacher "
            f"gives {gives.name.lower()} only; write estimator: sampled, without control_variate"
            + (", or estimator: top_k with candidates: teacher" if gives == Detail.TOP_K else "")
        )
    stop = StopClass.of(objective, parts.student.stop_ids, parts.student.head.vocabulary)
    if stop and (limited := [each for each in by_name(parts.learner.teacher).values() if not _merges(each, stop)]):
        raise RecipeError(
            f"objective.stop: class needs the teacher's log-probs of all ends ({', '.join(map(str, stop.ends))}), and "
            f"{type(limited[0]).__name__} gives {limited[0].gives.name.lower()} only; write stop: token, a local "
            "teacher, or a remote one with estimator: sampled"
        )
    outcomes = parts.student.head.vocabulary - (len(stop.ends) - 1 if stop else 0)
    if objective.estimator == "top_k" and objective.k >= outcomes:
        raise RecipeError(
            f"objective.k = {objective.k} is not less than the vocabulary of {outcomes}; write estimator: full"
        )


def _merges(teacher: Teacher, stop: StopClass) -> bool:
    """Tells whether a teacher gives the log-prob of all ends together."""
    by_asking = isinstance(teacher, RemoteTeacher) and not teacher.top and teacher.ends == stop.ends
    return teacher.gives == Detail.VOCABULARY or by_asking


def _check_context(parts: Parts) -> str:
    full = parts.recipe.rollout.full_tokens
    longest = _longest(parts) - full
    sharing = [model for name, model in parts.teachers.items() if name not in parts.prompts.teachers]
    for model in (parts.student, *sharing):
        if model.context is not None and longest + full > model.context:
            raise RecipeError(
                f"the longest prompt ({longest}) and rollout.full_tokens ({full}) make {longest + full} tokens, more "
                f"than the context of {model.name} ({model.context}); write full_tokens: {model.context - longest} or "
                "less, or lower prompt_tokens"
            )
    found = f"context: the longest prompt and full length make {longest + full} tokens, which fits"
    return found + "".join(_check_own_context(parts, *each) for each in parts.prompts.teachers.items())


def _check_own_context(parts: Parts, name: str | None, prompts: PromptSet) -> str:
    """Returns how long the prompts are that a teacher reads in place of the student's. Raises `RecipeError` if one does
    not fit the context of a local teacher together with a whole response."""
    full = parts.recipe.rollout.full_tokens
    longest = max(prompts.prompts, key=lambda prompt: len(prompt.ids))
    length, teacher = len(longest.ids), by_name(parts.learner.teacher).get(name or "")
    model = teacher.model if isinstance(teacher, LocalTeacher) else None
    if model and model.context is not None and length + full > model.context:
        most = model.context - length
        raise RecipeError(
            f"{prompts.where(longest.id)} has {length} tokens and rollout.full_tokens is {full}, more than the context "
            f"of {model.name} ({model.context}); {f'write full_tokens: {most} or less, or ' if most > 0 else ''}"
            "shorten such prompts, or leave them out with task.filter"
        )
    return f"; with the prompts of the teacher{f' {name}' if name else ''}, {length + full}"


def _check_evaluation(parts: Parts) -> Iterator[str]:
    """Yields notes on the evaluation's prompts. Raises `RecipeError` if one leaves no room for an answer."""
    if parts.evaluator is None:
        return
    prompts, full = parts.evaluator.prompts, parts.recipe.rollout.full_tokens
    yield from (f"evaluation: {note}" for note in (_counted(prompts, parts.recipe), *prompts.notes))
    read = [(parts.student, prompts)]
    if parts.evaluator.settings.measure == "divergence":  # the teacher answers
        read += [(model, prompts.teachers.get(name, prompts)) for name, model in parts.teachers.items()]
    for model, prompts in read:
        if model.context is None:
            continue
        cut = [prompt for prompt in prompts.prompts if len(prompt.ids) + full > model.context]
        if blocked := [prompt for prompt in cut if len(prompt.ids) >= model.context]:
            raise RecipeError(
                f"evaluation: {len(blocked):,} of {len(prompts.prompts):,} prompts fill the context of {model.name}, "
                f"{model.context} tokens, and leave no room for an answer (the first: {prompts.where(blocked[0].id)}); "
                f"shorten them, or write rollout.prompt_tokens: {max(1, model.context - full)} to drop them"
            )
        if cut:
            yield (
                f"evaluation: {len(cut):,} of {len(prompts.prompts):,} prompts leave less than full_tokens = {full} in "
                f"the context of {model.name}, {model.context} tokens: their answers are cut there (the first: "
                f"{prompts.where(cut[0].id)})"
            )


def _check_remote(parts: Parts) -> Iterator[str]:
    for name, teacher in parts.learner.remote.teachers.items():
        read = [len(prompt.of_teacher.ids) for prompt in parts.prompts.read_by(name)]
        longest = max(read, default=0) + parts.recipe.rollout.full_tokens
        yield from check_remote(name, teacher, parts.student, longest, parts.recipe.rollout.temperature)


def _longest(parts: Parts) -> int:
    """Counts the tokens of the longest prompt and a full response."""
    return max(len(prompt.ids) for prompt in parts.prompts.prompts) + parts.recipe.rollout.full_tokens


def _longest_sampled(parts: Parts) -> int:
    """Counts the most tokens that the engine is asked for, in training or, where it evaluates too, in evaluations."""
    evaluator, longest = parts.evaluator, _longest(parts)
    if evaluator is None or evaluator.engine is not parts.engine:
        return longest
    asked = max(len(prompt.ids) for prompt in evaluator.prompts.prompts) + evaluator.full_tokens
    return max(longest, min(asked, parts.student.context or asked))


def _check_same_model_is_zero(parts: Parts, rollouts: list[Rollout]) -> str:
    """Raises `ModelError` unless the student as its own teacher has no loss."""
    itself = LocalTeacher(parts.student, parts.recipe.rollout.temperature)
    worst, shared = 0.0, [replace(rollout, prompt=rollout.prompt.of_student) for rollout in rollouts]
    for batch in parts.learner.batches(shared, seed=0):
        with torch.no_grad():
            _, terms = parts.learner.loss(batch, itself)
        worst = max(worst, float(terms.loss.abs().max()), float(terms.log_ratio.abs().max()))
    parts.ledger.pending = Account()
    if not worst < 1e-3:
        raise ModelError(
            f"self-test: with the student as its own teacher the loss is {worst:.3g}, not 0; the model does not give "
            "the same answer twice"
        )
    return f"self-test: the student as its own teacher has a loss of {worst:.1g}"


def _check_real_step(parts: Parts, rollouts: list[Rollout]) -> str:
    statistics, before = parts.statistics(), parts.learner.optimizer.snapshot()
    parts.learner.accumulate(rollouts, seed=0, statistics=statistics)
    norm = parts.learner.apply(step=0)
    moved = parts.processes.highest(parts.learner.optimizer.roll_back(before))
    parts.ledger.pending = Account()
    loss, mismatch = statistics.loss, statistics.mean("mismatch")
    if not mismatch <= parts.recorder.mismatch.threshold:
        raise ModelError(
            f"the engine's log-probs and the learner's are {mismatch:.3g} nats a token apart, above "
            f"rollout.mismatch_alarm = {parts.recorder.mismatch.threshold:g}: what is sampled is not what is trained"
        )
    if loss == 0 or norm == 0 or moved == 0 or not math.isfinite(moved):
        raise ModelError(
            f"a real step on {len(rollouts)} rollouts has loss {loss:.3g}, gradient norm {norm:.3g} and update "
            f"{moved:.3g}: none may be zero. Are student and teacher the same model?"
        )
    return (
        f"a real step, rolled back: loss {loss:.4f}, gradient norm {norm:.3g}, largest update {moved:.2g}; engine and "
        f"learner agree to {mismatch:.1g} nats a token"
    )


def _check_disk(parts: Parts) -> str:
    """Counts the checkpoints that the run keeps and writes, less those that are there; so a resumed run needs room for
    one more at least. Raises `RecipeError` if there is none, or if nothing can be written."""
    kept = parts.recipe.checkpoint.keep_last + parts.recipe.checkpoint.keep_best + 1  # one more while it is written
    element = 16 if parts.recipe.training.ema else 12  # bytes: weights, two moments, and the average
    size = element * sum(master.numel() for master in parts.learner.optimizer.masters.values())
    place = next(path for path in (parts.directory.path, *parts.directory.path.absolute().parents) if path.exists())
    try:
        with TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise RecipeError(f"{place} cannot be written to ({error.strerror}); write another output") from error
    there, leftover = used(parts.directory.checkpoints)
    needed = max(size, kept * size - there)
    free = shutil.disk_usage(place).free + leftover
    sizes = f"{kept} checkpoints of {size / 1e9:.2g} GB"
    sizes += f" ({there / 1e9:.2g} GB are there already)" if there else ""
    sizes += f", {free / 1e9:.3g} GB free"
    if free < needed:
        raise RecipeError(
            f"{place} has no room for {sizes}; make room, lower checkpoint.keep_last, or write another output"
        )
    return f"disk: {sizes}"
