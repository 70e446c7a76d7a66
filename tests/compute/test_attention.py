"""Compares attention as matrix products with torch's own: values and gradients."""

import platform
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hopd.compute import attention
from hopd.compute.attention import (
    MATMUL,
    QUERIES,
    SDPA,
    BlockwiseAttention,
    fused_grouped_attention,
    grouped_attention,
    matmul_attention,
)
from hopd.compute.products import multiplies_bf16, multiplies_tiles
from hopd.distiller import Distiller
from hopd.model import load
from hopd.model.attention_choice import attention_of, choose_attention
from hopd.recipe import Recipe
from hopd.rollout import NativeEngine, Prompt, Sampling

QUICKSTART = "package:hopd/quickstart/student"


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Layer(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.num_key_value_groups, self.is_causal = shared, True


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 70), st.integers(0, 1000), st.booleans())
def test_grouped_attention_equals_torchs(rows, groups, shared, length, seed, added):
    """It varies sequences, key heads, query heads per key head, and the kind of mask."""
    query = random(rows, groups * shared, 1, 8, seed=seed)
    key, value = random(rows, groups, length, 8, seed=seed + 1), random(rows, groups, length, 8, seed=seed + 2)
    mask = random(rows, 1, 1, length, seed=seed + 3) > 0
    mask[..., seed % length] = True
    if added:
        mask = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    expected, _ = sdpa_attention_forward(Layer(shared), query, key, value, mask)
    found, _ = grouped_attention(Layer(shared), query, key, value, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 70), st.integers(0, 1000), st.booleans())
def test_fused_grouped_attention_equals_grouped_attention(rows, groups, shared, length, seed, added):
    query = random(rows, groups * shared, 8, seed=seed)
    key, value = random(rows, groups, length, 8, seed=seed + 1), random(rows, groups, length, 8, seed=seed + 2)
    mask = random(rows, 1, 1, length, seed=seed + 3) > 0
    mask[..., seed % length] = True
    if added:
        mask = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    expected, _ = grouped_attention(Layer(shared), query[:, :, None], key, value, mask, scaling=0.3)
    found = fused_grouped_attention(query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found, expected[:, 0], rtol=1e-4, atol=1e-5)


def test_a_model_decodes_the_same_with_the_fused_kernels(monkeypatch):
    """Prompts are ragged, so there is a mask, and the cache grows: a GPU does this for models without a decoder."""
    model, prompts = load(QUICKSTART), [Prompt(i, torch.arange(4, 7 + 2 * i)) for i in range(4)]
    monkeypatch.setattr("hopd.rollout.native.acceleration.decodes_by_kernels", lambda model: False)
    expected, prefers_fused = NativeEngine(model).sample(prompts, 80, Sampling(), 0), Mock(return_value=True)
    monkeypatch.setattr(attention, "prefers_fused", prefers_fused)
    for a, b in zip(NativeEngine(model).sample(prompts, 80, Sampling(), 0), expected, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        torch.testing.assert_close(a.log_probs, b.log_probs, rtol=1e-4, atol=1e-4)
    assert prefers_fused.called


def test_one_query_per_sequence_uses_the_fused_kernels_on_a_gpu(monkeypatch):
    """The meta device replaces a GPU: it computes nothing, but takes the same path."""
    fused = Mock(wraps=fused_grouped_attention)
    monkeypatch.setattr(attention, "fused_grouped_attention", fused)
    query, key = torch.empty(2, 6, 1, 8, device="meta"), torch.empty(2, 3, 64, 8, device="meta")
    mixed, _ = grouped_attention(Layer(2), query, key, key, torch.empty(2, 1, 1, 64, device="meta"))
    assert fused.called
    assert mixed.shape == (2, 1, 6, 8)


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 2 * QUERIES + 5), st.integers(0, 1000))
def test_blockwise_attention_and_its_gradients_equal_torchs(rows, groups, shared, length, seed):
    shapes = ((groups * shared, 8), (groups, 8), (groups, 6))
    qkv = [random(rows, n, length, w, seed=seed + i).requires_grad_() for i, (n, w) in enumerate(shapes)]
    grad = random(rows, length, groups * shared, 6, seed=seed + 3)
    results = []
    functions: tuple[Any, ...] = (sdpa_attention_forward, matmul_attention)
    for function in functions:
        mixed, _ = function(Layer(shared), *qkv, None, scaling=0.3)
        results.append([mixed, *torch.autograd.grad(mixed, qkv, grad)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_calls_with_a_mask_or_a_cache_go_to_torch():
    query, key = random(2, 4, 3, 8, seed=0), random(2, 2, 5, 8, seed=1)
    mask = torch.ones(2, 1, 3, 5, dtype=torch.bool).tril(2)
    expected, _ = sdpa_attention_forward(Layer(2), query, key, key, mask)
    found, _ = matmul_attention(Layer(2), query, key, key, mask)
    torch.testing.assert_close(found, expected)


def test_a_model_has_the_same_gradients_with_either_attention(monkeypatch):
    """The registered name reaches the model: each of its layers calls the function."""
    model, ids = load(QUICKSTART), torch.randint(3, 40, (3, 150), generator=torch.Generator().manual_seed(0))
    apply = Mock(wraps=BlockwiseAttention.apply)
    monkeypatch.setattr(attention.BlockwiseAttention, "apply", apply)
    gradients = []
    for name in (SDPA, MATMUL):
        model.model.set_attn_implementation(name)
        model.model.zero_grad()
        model.hidden(ids).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.model.parameters() if p.grad is not None])
    assert apply.call_count == model.config.num_hidden_layers
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


CPUS = {"AMX": {"amx_bf16": True, "avx512_bf16": True}, "AVX-512": {"avx512_bf16": True}, "older": {}}


@pytest.mark.parametrize(
    ("cpu", "precision", "longest"),
    [("AMX", "bf16", 512), ("AVX-512", "bf16", 128), ("older", "bf16", 0), ("AMX", "fp32", 0), ("older", "fp32", 0)],
)
def test_the_attention_choice_follows_from_precision_cpu_and_length(monkeypatch, cpu, precision, longest):
    monkeypatch.setattr("hopd.compute.products._capabilities", lambda: CPUS[cpu])
    model = load(QUICKSTART, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    for length in (1, 64, 128, 129, 512, 513, 4096):
        name, why = choose_attention(model, length, tokens=4096)
        assert name == (MATMUL if length <= longest else SDPA)
        assert why.startswith(f"attention: {'matmul' if length <= longest else 'sdpa'}, ")
        assert precision in why


def test_torch_and_the_system_agree_on_this_cpus_instructions():
    cpus = Path("/proc/cpuinfo")
    if not cpus.exists() or platform.machine() != "x86_64":
        pytest.skip("needs /proc/cpuinfo of an x86 processor")
    features = set(cpus.read_text().split())
    assert multiplies_tiles() == ("amx_bf16" in features)
    assert multiplies_bf16() == bool({"amx_bf16", "avx512_bf16"} & features)


def test_a_model_with_another_attention_keeps_it():
    model = load(QUICKSTART)
    model.model.set_attn_implementation("eager")
    assert choose_attention(model, 64, 256)[0] == "eager"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_attention_choice_uses_the_precision_of_training(tiny, precision):
    run = Distiller.of(Recipe.load(tiny, [f"training.precision={precision}", "training.attention=auto"]))
    assert any(note.startswith("attention: ") and f"in {precision}" in note for note in run.parts.notes)


def test_a_resumed_run_keeps_the_attention_choice(tiny):
    Distiller.of(Recipe.load(tiny, ["training.attention=matmul"])).train()
    checkpoint = Distiller.of(Recipe.load(tiny, ["training.attention=matmul"]), resume=True)
    assert attention_of(checkpoint.parts.student) == MATMUL
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hopd.assembly.assembly.choose_attention", lambda *given: pytest.fail("it chose again"))
        auto = Distiller.of(Recipe.load(tiny, ["training.attention=auto"]), resume=True)
    assert attention_of(auto.parts.student) == MATMUL
    assert all(attention_of(teacher) == MATMUL for teacher in auto.parts.teachers.values())
