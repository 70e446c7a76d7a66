"""The key–value cache of a batch that decodes in step: written in place, grown by blocks, never to a maximum."""

from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

_ATTENTION = {"full_attention", "sliding_attention"}
BLOCK = 64  # positions by which the cache grows: growing reads the cache as often as 1 in 64 tokens does


class GrowingLayer(CacheLayerMixin):
    """Keys and values (rows, heads, capacity, width) of one layer, of which `used` positions are live.

    transformers' dynamic layer copies the whole cache at every token; this one at every block. Sliding-window layers
    keep all positions too: the model's own mask hides what has left the window. Where one query a row is added,
    attention gets the whole capacity, which is contiguous, and a mask must hide the room behind (it holds zeros).
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.used = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = (_room(states, capacity(0)) for states in (key_states, value_states))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        end = self.used + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            self.keys, self.values = _grown(self.keys, self.used, end), _grown(self.values, self.used, end)
        self.keys[:, :, self.used : end] = key_states
        self.values[:, :, self.used : end] = value_states
        self.used = end
        if key_states.shape[-2] == 1:
            return self.keys, self.values
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i becomes what row `beam_idx[i]` was: this both shares a prompt among its samples and retires rows."""
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys.index_select(0, beam_idx), self.values.index_select(0, beam_idx)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        end = self.used + query_length
        return (capacity(end) if query_length == 1 else end), 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return -1


def capacity(length: int) -> int:
    """Positions that a cache of this length has room for."""
    return -(-length // BLOCK) * BLOCK


def _room(like: torch.Tensor, length: int) -> torch.Tensor:
    rows, heads, _, width = like.shape
    return like.new_zeros(rows, heads, length, width)


def _grown(old: torch.Tensor, used: int, end: int) -> torch.Tensor:
    new = _room(old, capacity(end))
    new[:, :, :used] = old[:, :, :used]
    return new


def attends_everywhere(config: PretrainedConfig) -> bool:
    """Whether every layer has keys and values, and none is recurrent."""
    return set(getattr(config, "layer_types", None) or ["full_attention"]) <= _ATTENTION


def new_cache(config: PretrainedConfig) -> Cache:
    """Growing layers where every layer attends; the model's own kind of cache where some layers are recurrent."""
    if attends_everywhere(config):
        return Cache(layer_class_to_replicate=GrowingLayer)
    return DynamicCache(config=config)
