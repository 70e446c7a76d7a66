"""Turns the reference answers of a task into token ids, as the student would have sampled them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from hopd.errors import TaskError
from hopd.model.stop import Stop
from hopd.tasks.problem import reference_text, refuse, such
from hopd.tasks.prompts import PromptSet
from hopd.tasks.tokens import Ids, tokenize


@dataclass(frozen=True)
class Answers:
    """Says what an answer of the student is: at most `full_tokens` ids below `vocabulary`, which end at one of `ends`
    or where `stop` says. `end` is put behind a whole reference; None if the student has no end."""

    full_tokens: int
    vocabulary: int
    ends: frozenset[int]
    end: int | None
    stop: Stop

    def of(self, ids: Ids) -> tuple[Ids, bool]:
        """Returns a reference's ids with its end, and whether one came before the last id, and cut it off there."""
        ended = np.flatnonzero(np.isin(ids, list(self.ends)))
        lengths = [int(ended[0]) + 1] if len(ended) else []
        lengths += [length] if (length := self.stop.end(ids.tolist())) is not None else []
        if lengths:
            return ids[: min(lengths)], min(lengths) < len(ids)
        return (ids if self.end is None else np.append(ids, self.end)), False


def with_references(prompts: PromptSet, answers: Answers) -> PromptSet:
    """Returns the prompts with their reference answers, tokenised without special tokens, each different text once.

    Of a long one, one token more than the full length is kept: it tells that the answer goes on. Raises `TaskError` for
    a prompt without a reference, and for an id that the models do not share. What is cut is told in the notes.
    """
    texts, numbers = _texts(prompts)
    made = [answers.of(ids) for ids in tokenize(texts, prompts.tokenizer, special=False)]
    lengths = np.array([len(ids) for ids, _ in made])[numbers]
    _check_ids(prompts, [ids for ids, _ in made], numbers, answers.vocabulary)
    notes = (
        f"references: {len(lengths):,} answers, {lengths.mean():.0f} tokens in the mean and at most {lengths.max():,}; "
        f"{_ending(prompts, answers.end)}",
        *_told(prompts, lengths > answers.full_tokens, f"are longer than full_tokens = {answers.full_tokens} and cut"),
        *_told(prompts, np.array([cut for _, cut in made])[numbers], "go on behind an end, where they are cut"),
    )
    tensors = [torch.from_numpy(ids[: answers.full_tokens + 1].copy()) for ids, _ in made]
    given = [replace(prompt, reference=tensors[at]) for prompt, at in zip(prompts.prompts, numbers, strict=True)]
    return replace(prompts, prompts=given, notes=(*prompts.notes, *notes))


def _texts(prompts: PromptSet) -> tuple[list[str], list[int]]:
    """Returns the different texts, and the place of each prompt's among them."""
    texts, numbers, faults = dict[str, int](), list[int](), dict[str, list[int]]()
    for prompt in prompts.prompts:
        try:
            text = reference_text(prompts.problems[prompt.id].reference)
        except TaskError as error:
            faults.setdefault(str(error), []).append(prompt.id)
        else:
            numbers.append(texts.setdefault(text, len(texts)))
    refuse(faults, prompts.where)
    return list(texts), numbers


def _check_ids(prompts: PromptSet, made: Sequence[Ids], numbers: Sequence[int], vocabulary: int) -> None:
    highest = np.array([ids.max() for ids in made])[numbers]
    for place in np.flatnonzero(highest >= vocabulary).tolist():
        token = prompts.tokenizer.convert_ids_to_tokens(int(highest[place]))
        raise TaskError(
            f"{prompts.where(prompts.prompts[place].id)}: a reference answer has the id {highest[place]} ({token!r}); "
            f"the models share the ids 0 to {vocabulary - 1} only{such(int((highest >= vocabulary).sum()))}"
        )


def _ending(prompts: PromptSet, end: int | None) -> str:
    if end is None:
        return "they have no end, because the student knows none"
    return f"one without an end of its own ends with {end} {prompts.tokenizer.convert_ids_to_tokens(end)!r}"


def _told(prompts: PromptSet, found: NDArray[np.bool_], what: str) -> Iterator[str]:
    """Yields a note with a count and the first row."""
    for place in np.flatnonzero(found)[:1].tolist():
        first = prompts.where(prompts.prompts[place].id)
        yield f"references: {int(found.sum()):,} of {len(found):,} answers {what} (the first: {first})"
