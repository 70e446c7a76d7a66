"""Keeps keys and values of a batch that decodes in lockstep, written in place and grown by blocks as needed."""

# transformers' base classes of caches are untyped.
# mypy: disable-error-code="no-untyped-call"

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

_ATTENTION = {"full_attention", "sliding_attention"}
_RECURRENT = {"linear_attention", "conv", "mamba", "recurrent"}
BLOCK = 64  # positions by which the cache grows: it is copied once in 64 tokens
# On a GPU it grows by this factor: freed memory there fits no later, larger request, and a CUDA graph can be replayed
# only while the cache stays at its address.
GROWTH = 1.25


class GrowingLayer(CacheLayerMixin):
    """Holds one layer's keys and values (sequences, heads, capacity, width), of which `used` positions are filled.

    transformers' dynamic layer copies the whole cache at every token, this one at every block. Sliding-window layers
    keep all positions too: the model's own mask hides those outside the window. For a single query, attention gets the
    whole capacity, which is contiguous, and a mask must hide the unused positions (they hold zeros).
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.used = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.extend(key_states.shape[-2])
        start, end = self.used - key_states.shape[-2], self.used
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        if start == 0:  # nothing was there before
            return key_states, value_states
        if key_states.shape[-2] == 1:
            return keys, values
        return keys[:, :, :end], values[:, :, :end]

    def extend(self, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes more positions into use, for the caller to write; returns all keys and values, unused positions
        included."""
        assert self.keys is not None
        assert self.values is not None
        end = self.used + positions
        if end > self.keys.shape[-2]:
            self.keys, self.values = _grown(self.keys, self.used, end), _grown(self.values, self.used, end)
        self.used = end
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Moves row `beam_idx[i]` to row i: it copies a prompt to all its samples, and drops finished sequences."""
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys.index_select(0, beam_idx), self.values.index_select(0, beam_idx)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        end = self.used + query_length
        if query_length > 1 or self.keys is None or end == 1:
            return end, 0
        return capacity(end, self.keys.device), 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # the name in transformers 5.10


def capacity(length: int, device: torch.device) -> int:
    """Returns how many positions a cache of this length has room for. It depends on the length and the kind of device
    alone, so that caches and masks agree."""
    size = BLOCK
    if device.type != "cpu":
        while size < length:
            size = _in_blocks(math.ceil(size * GROWTH))
        return size
    return _in_blocks(length)


def _in_blocks(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _grown(old: torch.Tensor, used: int, end: int) -> torch.Tensor:
    rows, heads, _, width = old.shape
    new = old.new_empty(rows, heads, capacity(end, old.device), width)
    new[:, :, :used] = old[:, :, :used]
    new[:, :, used:] = 0
    return new


def attends_everywhere(config: PretrainedConfig) -> bool:
    """Tells whether every layer has keys and values, and none is recurrent or masks by their number (GPT-Neo)."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or ["full_attention"]
    return set(kinds) <= _ATTENTION


def attends_nowhere(config: PretrainedConfig) -> bool:
    """Tells whether every layer is recurrent, as in Mamba: past positions are in its state, and no mask is needed."""
    kinds = set(getattr(config, "layer_types", None) or [])
    return bool(kinds) and kinds <= _RECURRENT


def joined(caches: Sequence[Cache], width: int) -> Cache:
    """Joins caches of growing layers into one, with all sequences aligned on the right, at position `width`.

    It empties the given caches layer by layer, to save memory.
    """
    if len(caches) == 1:
        return caches[0]
    whole = Cache(layer_class_to_replicate=GrowingLayer)
    for parts in zip(*(cache.layers for cache in caches), strict=True):
        layer = GrowingLayer()
        layer.keys = _stacked([part.keys for part in parts], [part.used for part in parts], width)
        layer.values = _stacked([part.values for part in parts], [part.used for part in parts], width)
        layer.used, layer.is_initialized = width, True
        whole.layers.append(layer)
        for part in parts:
            part.keys = part.values = None
    return whole


def cache_of_rows(rows: Sequence[torch.Tensor]) -> Cache:
    """Returns a cache of what `row_of` returned, one sequence each, aligned on the right."""
    lengths = [row.shape[3] for row in rows]
    width = max(lengths)
    whole = Cache(layer_class_to_replicate=GrowingLayer)
    for number in range(len(rows[0])):
        layer = GrowingLayer()
        layer.keys, layer.values = (
            _stacked([row[number, which][None] for row in rows], lengths, width) for which in (0, 1)
        )
        layer.used, layer.is_initialized = width, True
        whole.layers.append(layer)
    return whole


def has_rows(cache: Cache) -> bool:
    """Tells whether `row_of` can copy the cache's sequences: keys and values have one shape in all layers. They have
    none where layers are recurrent, and several in some families, such as DeepSeek's and Gemma 4's."""
    if not all(isinstance(layer, GrowingLayer) for layer in cache.layers):
        return False
    layers: Sequence[Any] = cache.layers
    return len({part.shape for layer in layers for part in (layer.keys, layer.values)}) == 1


def row_of(cache: Cache, row: int, start: int, end: int) -> torch.Tensor:
    """Copies one sequence's keys and values of positions `start` to `end`: (layer, 2, head, position, width)."""
    layers: Sequence[Any] = cache.layers
    return torch.stack(
        [torch.stack([part[row, :, start:end] for part in (layer.keys, layer.values)]) for layer in layers]
    )


def _stacked(parts: Sequence[torch.Tensor], used: Sequence[int], width: int) -> torch.Tensor:
    _, heads, _, size = parts[0].shape
    whole = parts[0].new_empty(sum(map(len, parts)), heads, capacity(width, parts[0].device), size)
    for rows, part, end in zip(torch.split(whole, [len(part) for part in parts]), parts, used, strict=True):
        rows[:, :, : width - end] = 0
        rows[:, :, width - end : width] = part[:, :, :end]
        rows[:, :, width:] = 0
    return whole


def new_cache(config: PretrainedConfig) -> Cache:
    """Returns a cache of growing layers, or the model's own kind of cache where some layers are recurrent."""
    if attends_everywhere(config):
        return Cache(layer_class_to_replicate=GrowingLayer)
    return DynamicCache(config=config)
