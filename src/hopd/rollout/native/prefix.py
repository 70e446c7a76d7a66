"""Reads what the rollouts of a wave have so far into one cache: prompts, and rollouts that continue.

A prompt is read once for its samples. A rollout whose keys and values were kept needs only its last token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from hopd.model import LanguageModel
from hopd.rollout.native.acceleration import TokenDecoder
from hopd.rollout.native.cache import attends_everywhere, cache_of_rows, joined, new_cache
from hopd.rollout.native.mask import DecodingMask
from hopd.rollout.rollout import Stretch

PREFILLED, PREFILLED_BY_GPU = 2048, 16384  # prompt tokens in one forward pass: enough to keep the device busy


@dataclass(frozen=True)
class Prefix:
    """Holds tokens to read, and the stretches that begin with them, by their numbers. `cache` holds the keys and values
    of all tokens but the last, if they were kept."""

    ids: Int[Tensor, " P"]
    stretches: tuple[int, ...]
    cache: Tensor | None = None


def prefixes(stretches: Sequence[Stretch]) -> list[Prefix]:
    """Returns what has to be read; samples of a prompt that start one after another share it."""
    made: list[Prefix] = []
    for number, stretch in enumerate(stretches):
        rollout = stretch.rollout
        if made and rollout.length == 0 and made[-1].ids is rollout.prompt.ids:
            made[-1] = Prefix(made[-1].ids, (*made[-1].stretches, number))
        else:
            made.append(Prefix(stretch.read, (number,), rollout.cache))
    return made


def read(
    model: LanguageModel, decoder: TokenDecoder | None, wave: Sequence[Prefix]
) -> tuple[Float[Tensor, "R D"], Cache]:
    """Returns the hidden state of each row's last token, and the cache, with all rows aligned on the right. The rows
    are the stretches of all prefixes; those with a cache must be the last."""
    kept = [prefix for prefix in wave if prefix.cache is not None]
    parts = []
    if fresh := wave[: len(wave) - len(kept)]:
        parts.append(_prefilled(model, fresh))
    if kept:
        parts.append(_resumed(model, decoder, kept))
    width = max(len(prefix.ids) for prefix in wave)
    return torch.cat([hidden for hidden, _ in parts]), joined([cache for _, cache in parts], width)


def _prefilled(model: LanguageModel, wave: Sequence[Prefix]) -> tuple[Float[Tensor, "R D"], Cache]:
    """Groups of similar length need little padding."""
    ids, states, caches = [prefix.ids for prefix in wave], [], []
    for group in _groups(ids, model.device) if attends_everywhere(model.config) else [ids]:
        padded, mask = flush_right(group, model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        caches.append(new_cache(model.config))
        states.append(model.hidden(padded, DecodingMask(model, mask).of_prompts(), positions, caches[-1])[:, -1])
    hidden, cache = torch.cat(states), joined(caches, max(map(len, ids)))
    prefix_of_row = torch.tensor([i for i, prefix in enumerate(wave) for _ in prefix.stretches], device=model.device)
    if len(prefix_of_row) > len(wave):
        cache.reorder_cache(prefix_of_row)  # type: ignore[arg-type]
        hidden = hidden[prefix_of_row]
    return hidden, cache


def _resumed(
    model: LanguageModel, decoder: TokenDecoder | None, wave: Sequence[Prefix]
) -> tuple[Float[Tensor, "R D"], Cache]:
    """Computes the last token as it would have been computed, had the rollout gone on at once."""
    device = model.device
    cache = cache_of_rows([prefix.cache for prefix in wave if prefix.cache is not None])
    tokens = torch.tensor([int(prefix.ids[-1]) for prefix in wave], device=device)
    positions = torch.tensor([len(prefix.ids) - 1 for prefix in wave], device=device)
    width = cache.get_seq_length()
    if decoder is None:
        seen = DecodingMask(model, torch.arange(width, device=device) >= width - positions[:, None])
        return model.hidden(tokens[:, None], seen.of_token(width), positions[:, None], cache)[:, -1], cache
    cos, sin = decoder.angles(width + 1)
    return decoder.hidden(tokens, (cos[positions], sin[positions]), cache, first=width - positions), cache


def _groups(prompts: Sequence[Int[Tensor, " _"]], device: torch.device) -> Iterator[Sequence[Int[Tensor, " _"]]]:
    """Yields groups of neighbours to prefill together; `prompts` are sorted by length, the longest first."""
    start, tokens = 0, PREFILLED if device.type == "cpu" else PREFILLED_BY_GPU
    while start < len(prompts):
        rows = max(1, tokens // len(prompts[start]))
        yield prompts[start : start + rows]
        start += rows


def flush_right(
    sequences: Sequence[Int[Tensor, " _"]], device: torch.device
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Pads sequences on the left to the longest, with id 0. Returns the ids and a mask that is True where they are
    real."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = sequence
        mask[row, width - len(sequence) :] = True
    return ids.to(device), mask.to(device)
