"""The chunked head: precision, the size of a chunk, and that no more than one is held."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hopd.objective import Head, HiddenSignal
from hopd.objective.head import CHUNK_BYTES, chunk_bytes_on, chunked_loss
from tests.objective.test_reference import V, setup


def test_a_bf16_head_sums_its_chunks_in_float32():
    """One chunk has a large gradient and many have small ones, which bf16 would round away."""
    hidden = torch.ones(400, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    scale = torch.full((400,), 1 / 16)
    scale[0] = 16.0
    total, _ = chunked_loss(
        Head(weight), hidden, lambda logits, rows: (scale[rows] * logits[:, 0], logits), chunk_bytes=8
    )
    (gradient,) = torch.autograd.grad(total, [weight])
    assert float(gradient[0, 0]) == pytest.approx(16 + 399 / 16, rel=0.01)


@pytest.mark.parametrize(("gib", "expected"), [(24, 24 * 2**30 // 80), (80, 2**30), (140, 2**30)])
def test_the_chunk_size_follows_the_memory_of_the_device(monkeypatch, gib, expected):
    card = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert chunk_bytes_on(torch.device("cuda")) == expected
    assert (
        chunk_bytes_on(torch.device("cpu")) == CHUNK_BYTES == 128 * 2**20
    )  # on CPUs the size decides the bits of a run


def test_a_loss_and_its_teacher_use_the_chunk_size_of_the_device(monkeypatch):
    hidden, head, signal, _ = setup()
    seen = []

    def terms(logits, rows):
        seen.append(rows)
        return logits.sum(-1), logits[:, :1]

    for module in ("head", "signal"):
        monkeypatch.setattr(f"hopd.objective.{module}.chunk_bytes_on", lambda device: 4 * V * 3)
    chunked_loss(head, hidden, terms)
    assert [rows.stop - rows.start for rows in seen] == [3, 3, 3, 2]
    assert HiddenSignal(signal.head, signal.hidden).chunk_bytes == 4 * V * 3


def test_no_more_than_one_chunk_of_logits_is_held():
    """No operation returns more than one chunk's logits, of 64 positions, though there are 1,000 positions."""
    positions, width, vocabulary, chunk = 1000, 4, 64, 64
    hidden = torch.randn(positions, width, requires_grad=True)
    head = Head(torch.randn(vocabulary, width, requires_grad=True))
    seen = []

    def terms(logits, rows):
        seen.append(logits.shape[0])
        return logits.square().sum(-1), logits[:, :1]

    with LargestTensor() as largest:
        loss, _ = chunked_loss(head, hidden, terms, chunk_bytes=chunk * 4 * vocabulary)
        loss.backward()
    assert sum(seen) == positions
    assert largest.elements == chunk * vocabulary


class LargestTensor(TorchDispatchMode):
    """Counts the elements of the largest tensor that any operation returns inside the block."""

    elements = 0

    def __torch_dispatch__(self, operation, types, given=(), options=None):
        result = operation(*given, **(options or {}))
        sizes = [part.numel() for part in tree_leaves(result) if isinstance(part, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result
