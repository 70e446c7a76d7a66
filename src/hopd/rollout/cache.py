"""The key–value cache of a batch that decodes in step: written in place, grown by doubling, never to a maximum."""

from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

_ATTENTION = {"full_attention", "sliding_attention"}
_FIRST_CAPACITY = 64


class GrowingLayer(CacheLayerMixin):
    """Keys and values (rows, heads, capacity, width) of one layer, of which `used` positions are live.

    transformers' dynamic layer copies the whole cache at every token; this one at every doubling. Sliding-window
    layers keep all positions too: the model's own mask hides what has left the window.
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.used = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = (_room(states, _FIRST_CAPACITY) for states in (key_states, value_states))
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
            live = slice(self.used)
            capacity = max(end, 2 * self.used)
            grown = _room(self.keys, capacity), _room(self.values, capacity)
            grown[0][:, :, live], grown[1][:, :, live] = self.keys[:, :, live], self.values[:, :, live]
            self.keys, self.values = grown
        self.keys[:, :, self.used : end] = key_states
        self.values[:, :, self.used : end] = value_states
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i becomes what row `beam_idx[i]` was: this both shares a prompt among its samples and retires rows."""
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys.index_select(0, beam_idx), self.values.index_select(0, beam_idx)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used + query_length, 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return -1


def _room(like: torch.Tensor, capacity: int) -> torch.Tensor:
    rows, heads, length, width = like.shape
    return like.new_empty(rows, heads, max(capacity, length), width)


def new_cache(config: PretrainedConfig) -> Cache:
    """Growing layers where every layer attends; the model's own kind of cache where some layers are recurrent."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return Cache(layer_class_to_replicate=GrowingLayer) if kinds <= _ATTENTION else DynamicCache(config=config)
