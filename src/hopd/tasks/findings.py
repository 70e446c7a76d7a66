"""Finds prompts that models cannot read, or that a person may not have meant, from their token ids.

Each finding is a sentence with a count and an example. Many prompts are looked at together.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hopd.errors import TaskError
from hopd.rollout.rollout import Prompt
from hopd.tasks.chat import ChatTemplate
from hopd.tasks.files import PromptFile
from hopd.tasks.problem import Message, such
from hopd.tasks.prompts import PromptSet

Ids = NDArray[np.int64]
Test = Callable[[Ids, Ids, Ids], NDArray[np.bool_]]
"""Tells of each prompt whether it is sought. It is given many prompts' ids, and where each begins and ends."""

BLOCK = 65_536  # prompts that are looked at together
COMPARED = 256  # prompts that are tokenised as a teacher's own tokenizer would
SHOWN = 8  # tokens of a difference


def check_embedded(prompts: PromptSet, read: Sequence[Prompt], model: str, rows: int) -> None:
    """Raises `TaskError` if one of the prompts `read` by a model has an id beyond the rows of its embedding."""
    if found := _select(read, lambda ids, starts, _: np.maximum.reduceat(ids, starts) >= rows):
        id = int(found[0].ids.max())
        token = prompts.tokenizer.convert_ids_to_tokens(id)
        raise TaskError(
            f"{prompts.where(found[0].id)}: the prompt has the id {id} ({token!r}), and the embedding of {model} has "
            f"{rows} rows{such(len(found))}; use a model that knows this token, or prompts without it"
        )


def findings(prompts: PromptSet, stop_ids: Collection[int]) -> Iterator[str]:
    """Yields notes. Raises `TaskError` if the tokenizer itself puts an end behind the prompts."""
    tokenizer, every = prompts.tokenizer, prompts.prompts
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ends = {*stop_ids, *(() if eos is None else (eos,))}
    stops = np.array(sorted(ends), np.int64)

    def told(found: Sequence[Prompt], what: str) -> Iterator[str]:
        if found:
            yield f"{len(found):,} of {len(every):,} prompts {what} (the first: {prompts.where(found[0].id)})"

    if ended := _select(every, lambda ids, _, ends: np.isin(ids[ends - 1], stops)):
        token = tokenizer.convert_ids_to_tokens(int(ended[0].ids[-1]))
        if prompts.chat is None and _adds_end(tokenizer, ends):
            raise TaskError(
                f"{prompts.where(ended[0].id)}: the tokenizer itself ends the prompt with {token!r}, an end of "
                f"sequence{such(len(ended))}: the student would answer after it; set add_eos_token: false in its "
                "tokenizer_config.json, or take the token out of the post-processor in tokenizer.json"
            )
        yield from told(ended, f"end with {token!r}, an end of sequence: the student answers after it")
    if bos is not None:

        def twice(ids: Ids, starts: Ids, ends: Ids) -> NDArray[np.bool_]:
            second = np.minimum(starts + 1, ends - 1)
            found: NDArray[np.bool_] = (second > starts) & (ids[starts] == bos) & (ids[second] == bos)
            return found

        yield from told(_select(every, twice), f"begin with {tokenizer.bos_token!r} twice: it is added, and typed too")
    if prompts.chat is None:

        def inside(ids: Ids, starts: Ids, ends: Ids) -> NDArray[np.bool_]:
            stop = np.isin(ids, stops)
            stop[ends - 1] = False
            stop[starts] &= ids[starts] != bos  # where one token is both
            return np.logical_or.reduceat(stop, starts)

        yield from told(_select(every, inside), "have an end of sequence inside, as between turns of a chat")
    for token in filter(None, tokenizer.convert_ids_to_tokens(stops.tolist()) if prompts.chat else ()):
        typed = [each for each in every if _types(prompts.problems[each.id].prompt, token)]
        yield from told(typed, f"have {token!r} in the text of a message, where it is read as the end of a turn")
    yield from _repeated(prompts)


def read_otherwise(
    prompts: PromptSet, read: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, model: str
) -> Iterator[str]:
    """Yields a note if a model's own tokenizer or chat template would make other ids of the first prompts that it
    reads: it scores the student's."""
    if prompts.chat and not tokenizer.chat_template:
        return
    template = prompts.chat and ChatTemplate(tokenizer, prompts.chat.system, prompts.chat.options)
    read, found = read[:COMPARED], list[tuple[Prompt, list[int]]]()
    for prompt in read:
        content = prompts.problems[prompt.id].prompt
        try:
            text = template.render(content) if template else content
        except TaskError as error:
            yield f"{prompts.where(prompt.id)}: in {model}'s own tokenizer {error}; it reads the student's prompt"
            return
        ids = list(tokenizer(text, add_special_tokens=template is None).input_ids)
        if ids != prompt.ids.tolist():
            found.append((prompt, ids))
    if found:
        (prompt, theirs), mine = found[0], found[0][0].ids.tolist()
        same = next(
            (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs))
        )
        one, other = (tokenizer.decode(ids[same : same + SHOWN]) for ids in (mine, theirs))
        yield (
            f"{model} reads the student's prompts; by its own tokenizer and chat template {len(found)} of the first "
            f"{len(read)} would be others (the first: {prompts.where(prompt.id)}: {one!r} would be {other!r})"
        )


def _repeated(prompts: PromptSet) -> Iterator[str]:
    """Yields a note on prompts that come more than once in a file."""
    if not isinstance(prompts.task, PromptFile):
        return
    first: dict[tuple[int, str | None], int] = {}
    repeated = [
        (prompt.id, before)
        for prompt in prompts.prompts
        if (before := first.setdefault((id(prompt.ids), prompt.teacher), prompt.id)) != prompt.id
    ]
    if repeated:
        (again, before), every = repeated[0], len(prompts.prompts)
        yield (
            f"{len(repeated):,} of {every:,} prompts repeat an earlier one (the first: row {again + 1} is row "
            f"{before + 1} again); task: {{unique: true}} keeps each once"
        )


def _select(prompts: Sequence[Prompt], test: Test) -> list[Prompt]:
    different = list({id(prompt.ids): prompt.ids for prompt in prompts}.items())
    passed = set[int]()
    for start in range(0, len(different), BLOCK):
        keys, ids = zip(*different[start : start + BLOCK], strict=True)
        ends = np.cumsum([len(each) for each in ids])
        starts = np.concatenate(([0], ends[:-1]))
        passed |= {keys[place] for place in np.flatnonzero(test(torch.cat(ids).numpy(), starts, ends))}
    return [prompt for prompt in prompts if id(prompt.ids) in passed] if passed else []


def _adds_end(tokenizer: PreTrainedTokenizerBase, stop_ids: Collection[int]) -> bool:
    """Tells whether the tokenizer puts a stop id behind any text."""
    whole, bare = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    return bool(whole) and whole[-1] in stop_ids and whole[-1:] != bare[-1:]


def _types(prompt: str | list[Message], token: str) -> bool:
    if isinstance(prompt, str):
        return token in prompt
    return any(token in str(message.get("content")) for message in prompt)
