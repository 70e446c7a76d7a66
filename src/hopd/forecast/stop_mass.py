"""Measures how likely the student and its teachers are to end an answer by each id, where the student ended a few."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from hopd.assembly import Parts
from hopd.model.vocabulary import end_of_turn, named
from hopd.objective import Detail
from hopd.rollout import Batch, FinishReason, Rollout, fold, pack
from hopd.teacher import LocalTeacher, RemoteTeacher, Teacher
from hopd.teacher.teacher import by_name

ANSWERS, TOKENS = 4, 256  # how many answers are sampled, of at most how many tokens: seconds, also of a large model
APART = (
    0.3  # the share of the ends' probability that a teacher gives to other ids than the student, above which it warns
)


def compare_ends(parts: Parts) -> Iterator[str]:
    """Yields one sentence for each teacher, where the models' files name more than one end."""
    ends = _candidates(parts)
    if len(ends) < 2:
        return
    tokens = min(TOKENS, parts.recipe.rollout.full_tokens)
    prompts = parts.order.at(0)[:ANSWERS]
    answers = parts.engine.sample(prompts, tokens, parts.sampling, fold(parts.recipe.seed))
    ended = [answer for answer in answers if answer.finish is FinishReason.STOP and int(answer.ids[-1]) in ends]
    if not ended:
        yield f"ends: {named(parts.student, ends)}; no answer of {len(answers)} ended within {tokens} tokens"
    for name, teacher in by_name(parts.learner.teacher).items():
        scored = [answer for answer in ended if not name or answer.prompt.teacher == name]
        if scored and (teacher.gives is Detail.VOCABULARY or isinstance(teacher, RemoteTeacher)):
            itself = LocalTeacher(parts.student, parts.recipe.rollout.temperature)
            shared = [replace(answer, prompt=answer.prompt.of_student) for answer in scored]
            mine, theirs = (_mass(parts, *each, ends) for each in ((itself, shared), (teacher, scored)))
            yield _sentence(parts, f"the teacher {name}".strip(), ends, mine, theirs, len(scored))


def _candidates(parts: Parts) -> list[int]:
    """Returns the ids that any model's files name as an end, and those of the recipe."""
    models = [parts.student, *parts.teachers.values()]
    declared = {id for model in models for ids in model.declared_ends.values() for id in ids}
    turns = {turn for model in models if (turn := end_of_turn(model.tokenizer)) is not None}
    return sorted(id for id in declared | turns | parts.student.stop_ids if id < parts.student.head.vocabulary)


def _mass(parts: Parts, teacher: Teacher, answers: Sequence[Rollout], ends: list[int]) -> Float[Tensor, " E"]:
    """Returns the mean probability of each end at the last tokens of the answers."""
    spans = [(answer.length - 1, answer.length) for answer in answers]
    batches = pack(answers, spans, parts.recipe.training.tokens_per_batch, parts.student.device)
    return torch.cat([_log_probs(teacher, batch, ends) for batch in batches]).exp().mean(0)


def _log_probs(teacher: Teacher, batch: Batch, ends: list[int]) -> Float[Tensor, "N E"]:
    if isinstance(teacher, RemoteTeacher):
        return teacher.in_place_of_last(batch, ends)
    return teacher.score(batch).log_probs(slice(0, len(batch.at.tokens)))[:, ends].cpu()


def _sentence(
    parts: Parts, teacher: str, ends: list[int], mine: Float[Tensor, " E"], theirs: Float[Tensor, " E"], answers: int
) -> str:
    both = ", ".join(
        f"{named(parts.student, [id])} {_percent(m)} by the student, {_percent(t)} by {teacher}"
        for id, m, t in zip(ends, mine.tolist(), theirs.tolist(), strict=True)
    )
    found = f"ends: at the last token of {answers} answers of the student: {both}"
    apart = float((mine / mine.sum() - theirs / theirs.sum()).clamp(min=0).sum())
    if not apart > APART:
        return found
    missing = [id for id in ends if id not in parts.student.stop_ids and float(theirs[ends.index(id)]) > 0.01]
    advice = [f"rollout: {{stop: {missing}}}"] if missing else []
    advice += ["objective: {stop: class}"] if parts.recipe.objective.stop != "class" else []
    consequence = "they end answers by different ids, so scored id by id the student may learn to go on"
    return f"{found}; {consequence}" + (
        f": write {' and '.join(advice)}" if advice else ", but stop: class adds them up"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
