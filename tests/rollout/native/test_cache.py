"""Checks the cache, and that its mask covers the same positions."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import Cache

from hopd.rollout.native.cache import BLOCK, GROWTH, GrowingLayer, capacity, joined


def keys_of(cache):
    (layer,) = cache.layers
    return layer.keys


@given(st.lists(st.sampled_from([1, 2, 30, 64, 65]), min_size=1, max_size=6))
def test_attention_gets_as_many_positions_as_its_mask_has_and_all_that_were_written(lengths):
    layer, written = GrowingLayer(), torch.zeros(2, 3, 0, 4)
    for length in lengths:
        states = torch.randn(2, 3, length, 4)
        masked, _ = layer.get_mask_sizes(length)
        keys, values = layer.update(states, -states)
        written = torch.cat([written, states], dim=2)
        assert keys.shape[2] == values.shape[2] == masked
        assert torch.equal(keys[:, :, : layer.used], written)
        assert torch.equal(values[:, :, : layer.used], -written)
        assert not keys[:, :, layer.used :].any()


@given(st.integers(1, 20_000))
def test_a_cache_has_room_and_not_much_more_than_it_needs(length):
    cpu, gpu = capacity(length, torch.device("cpu")), capacity(length, torch.device("cuda"))
    assert length <= cpu < length + BLOCK
    assert length <= gpu < GROWTH * (length + BLOCK) + BLOCK
    assert cpu % BLOCK == gpu % BLOCK == 0


def test_on_a_gpu_a_cache_moves_a_few_times_only():
    sizes = {capacity(length, torch.device("cuda")) for length in range(1, 16_385)}
    assert len(sizes) < 25


def test_unused_positions_are_zero_whatever_their_memory_held(monkeypatch):
    """An attention weight of zero times NaN would be NaN."""
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape: self.new_full(shape, float("nan")))
    caches = []
    for rows, length in ((2, 70), (1, 5)):
        caches.append(Cache(layer_class_to_replicate=GrowingLayer))
        for part in (length - 1, 1):
            states = torch.ones(rows, 3, part, 4)
            caches[-1].update(states, states, 0)
        assert not keys_of(caches[-1])[:, :, length:].any()
    keys = keys_of(joined(caches, 70))
    assert keys.shape == (3, 3, 128, 4)
    assert torch.equal(keys.sum((1, 2, 3)), torch.tensor([70.0, 70.0, 5.0]) * 12)
    assert keys[2, :, 65:70].all()
