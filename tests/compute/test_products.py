"""Compares matrix products by oneDNN, and their gradients, with torch's."""

from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hopd.compute import products
from hopd.compute.products import for_decoding, for_training, linear, packed, packs, replaced_linears
from hopd.model import load
from hopd.objective.head import Head, chunked_loss

needs_packing = pytest.mark.skipif(not packs(torch.float32), reason="this build of torch packs no weights")
wholes = st.integers(1, 40)


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(1, 70), st.integers(1, 40), st.booleans(), st.integers(0, 1000))
@needs_packing
def test_a_packed_projection_equals_torchs(rows, inputs, outputs, with_bias, seed):
    """This holds for the number of rows that it was packed for, and for any other."""
    weight, bias = random(outputs, inputs, seed=seed), random(outputs, seed=seed + 1) if with_bias else None
    project = packed(weight, bias, rows=64)
    x = random(rows, 1, inputs, seed=seed + 2)
    torch.testing.assert_close(project(x), nn.functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inputs", [64, 1100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_projection_for_decoding_equals_torchs_in_any_size_and_dtype(inputs, dtype):
    weight, bias = random(1000, inputs, seed=0).to(dtype), random(1000, seed=1).to(dtype)
    x = random(5, 1, inputs, seed=2).to(dtype)
    for offset in (bias, None):
        expected = nn.functional.linear(x.float(), weight.float(), None if offset is None else offset.float())
        got = for_decoding(weight, offset, rows=5)(x).float()
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=0.2 if dtype == torch.bfloat16 else 1e-3)


@pytest.fixture
def by_onednn(monkeypatch):
    """Uses oneDNN for matrices of any size, as on a CPU where MKL is slow, and returns its calls."""
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    monkeypatch.setattr(products, "SMALL", 0)
    asked = Mock(wraps=products._onednn)
    monkeypatch.setattr(products, "_onednn", asked)
    return asked


def gradients(compute, *tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = compute(*leaves)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    return out.detach(), torch.autograd.grad((out * weights).sum(), leaves)


@needs_packing
@settings(max_examples=30)
@given(st.integers(0, 40), wholes, wholes, wholes, st.booleans(), st.integers(0, 1000))
def test_a_linear_layer_and_its_gradients_equal_torchs(rows, length, inputs, outputs, with_bias, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_mkl_is_slow", lambda: True)
        patch.setattr(products, "SMALL", 0)
        given_tensors = [random(rows, length, inputs, seed=seed), random(outputs, inputs, seed=seed + 1)]
        given_tensors += [random(outputs, seed=seed + 2)] if with_bias else []
        torch.testing.assert_close(
            gradients(linear, *given_tensors), gradients(nn.functional.linear, *given_tensors), rtol=1e-4, atol=1e-4
        )


@needs_packing
def test_a_gradient_with_strides_of_zero_is_accepted(by_onednn):
    """`sum().backward()` passes on such a gradient."""
    x, weight = random(5, 7, seed=0), random(3, 7, seed=1)
    found = [t.requires_grad_() for t in (x.clone(), weight.clone())]
    linear(*found).sum().backward()
    torch.testing.assert_close(found[0].grad, weight.sum(0).expand(5, 7))
    torch.testing.assert_close(found[1].grad, x.sum(0).expand(3, 7))


@needs_packing
@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_tensors_get_no_gradient(by_onednn, frozen):
    tensors = [random(5, 7, seed=0), random(3, 7, seed=1)]
    tensors[1 - frozen].requires_grad_()
    linear(*tensors).sum().backward()
    assert tensors[frozen].grad is None
    assert tensors[1 - frozen].grad is not None


@needs_packing
def test_the_head_and_its_gradients_equal_torchs(by_onednn):
    hidden, weight = random(30, 16, seed=0), random(50, 16, seed=1)

    def loss(hidden, weight):
        target = torch.arange(30) % 50
        return chunked_loss(
            Head(weight),
            hidden,
            lambda logits, rows: (
                (logits.logsumexp(-1) - logits.gather(-1, target[rows, None])[:, 0]),
                logits.detach()[:, :1],
            ),
            chunk_bytes=4 * 50 * 7,
        )[0]

    def reference(hidden, weight):
        return nn.functional.cross_entropy(hidden @ weight.T, torch.arange(30) % 50, reduction="sum")

    torch.testing.assert_close(gradients(loss, hidden, weight), gradients(reference, hidden, weight))
    assert by_onednn.call_count == 3 * 5  # of five chunks: logits, and two gradients


@needs_packing
def test_a_model_trains_with_onednn_and_is_restored_afterwards(by_onednn):
    model = load("package:hopd/quickstart/student")
    by_onednn.reset_mock()
    ids, found = torch.arange(24).view(2, 12) % 14, []
    for make in (lambda weight, bias: None, for_training):
        model.model.zero_grad()
        with replaced_linears(model.backbone, make):
            model.hidden(ids).square().mean().backward()
        found.append({name: p.grad for name, p in model.backbone.named_parameters()})
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)
    layers = sum(type(module) is nn.Linear for module in model.backbone.modules())
    assert by_onednn.call_count == 3 * layers
    assert not any("forward" in vars(module) for module in model.model.modules())


def test_small_matrices_stay_with_torch(monkeypatch):
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    assert for_training(nn.Parameter(torch.zeros(8, 8)), None) is None
    assert for_training(nn.Parameter(torch.zeros(512, 512)), None) is not None
    assert for_training(nn.Parameter(torch.zeros(512, 512, dtype=torch.bfloat16)), None) is None
