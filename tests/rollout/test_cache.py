"""The cache and the mask that is made for it must speak of the same positions."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from hopd.rollout.cache import GrowingLayer


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
