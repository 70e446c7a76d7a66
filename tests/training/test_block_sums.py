"""The products of blocks are means over pairs of different rollouts, however rollouts are divided."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hopd.processes import Processes
from hopd.training.block_sums import BLOCKS, BlockSums, block_edges


@st.composite
def rollouts(draw):
    """Draws gradients (n × K × 3) and which blocks each rollout has: all up to some block."""
    count = draw(st.integers(0, 7))
    numbers = st.floats(-3, 3, width=32)
    flat = draw(st.lists(numbers, min_size=count * BLOCKS * 3, max_size=count * BLOCKS * 3))
    reached = torch.tensor(draw(st.lists(st.integers(0, BLOCKS), min_size=count, max_size=count)), dtype=torch.long)
    return torch.tensor(flat).view(count, BLOCKS, 3), torch.arange(BLOCKS) < reached[:, None]


def sums(vectors, complete, size=100):
    made = BlockSums.zeros(3)
    for part, has in zip(vectors.split(size), complete.split(size), strict=True):
        made.add(part, has)
    return made


@settings(max_examples=60)
@given(drawn=rollouts(), size=st.integers(1, 4))
def test_a_product_is_the_mean_over_pairs_of_different_rollouts_that_have_the_blocks(drawn, size):
    vectors, complete = drawn
    found = sums(vectors, complete, size).gradients()
    v = vectors.double()
    for b in range(BLOCKS):
        for c in range(BLOCKS):
            pairs = [
                float(v[i, b] @ v[j, c])
                for i in range(len(v))
                for j in range(len(v))
                if i != j and complete[i, b] and complete[j, c]
            ]
            assert found.pairs[b][c] == len(pairs)
            assert found.products[b][c] == pytest.approx(sum(pairs) / max(1, len(pairs)), abs=1e-9)
        here = v[complete[:, b], b]
        expected = float(here.var(0).sum()) if len(here) > 1 else 0.0
        assert found.noise[b] == pytest.approx(expected, abs=1e-9)


def test_noise_adds_nothing_to_the_signal():
    """With as much noise as eight rollouts can carry, the mean over many steps is that of the gradients alone."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.zeros(BLOCKS, 3, dtype=torch.float64)
    mean[0, 0], mean[1, 0], mean[2, 1] = 1.0, -2.0, 3.0
    found_in = []
    for _ in range(3000):
        made = BlockSums.zeros(3)
        noise = torch.randn(8, BLOCKS, 3, generator=generator, dtype=torch.float64)
        made.add(mean + 2 * noise, torch.ones(8, BLOCKS, dtype=torch.bool))
        found = made.gradients()
        found_in.append(torch.cat([torch.tensor(found.products).flatten(), torch.tensor(found.noise)]))
    steps = torch.stack(found_in)
    error = steps.std(0) / len(steps) ** 0.5
    expected = torch.cat([(mean @ mean.T).flatten(), torch.full((BLOCKS,), 4.0 * 3)])
    assert ((steps.mean(0) - expected).abs() < 4.5 * error).all()


def test_several_processes_add_up_to_one(monkeypatch):
    vectors = torch.randn(5, BLOCKS, 3, generator=torch.Generator().manual_seed(0))
    complete = torch.arange(BLOCKS) < torch.tensor([3, 10, 7, 10, 5])[:, None]
    mine, other = (
        sums(vectors[:2], complete[:2]).summed(Processes()),
        sums(vectors[2:], complete[2:]).summed(Processes()),
    )
    parts = torch.cat([part.flatten() for part in (other.vectors, other.products, other.counts)])
    monkeypatch.setattr(Processes, "sum", lambda self, tensor: tensor + parts)
    together, one = mine.summed(Processes()).gradients(), sums(vectors, complete).gradients()
    torch.testing.assert_close(torch.tensor(together.products), torch.tensor(one.products))
    assert together.pairs == one.pairs
    assert together.noise == pytest.approx(one.noise)


def test_what_no_pair_shows_is_not_written_as_zero():
    vectors = torch.ones(3, BLOCKS, 3) / 3
    written = sums(vectors, torch.arange(BLOCKS) < torch.tensor([4, 4, 2])[:, None]).metrics()
    assert written["products"][0][:5] == [0.3333, 0.3333, 0.3333, 0.3333, None]
    assert written["products"][4] == [None] * BLOCKS
    assert written["noise"] == [0.0] * BLOCKS


@given(full_tokens=st.integers(1, 2000))
def test_blocks_are_tenths(full_tokens):
    edges = block_edges(full_tokens)
    assert len(edges) == BLOCKS + 1
    assert edges[[0, -1]].tolist() == [0, full_tokens]
    assert all(abs(width - full_tokens / BLOCKS) < 1 for width in edges.diff().tolist())
