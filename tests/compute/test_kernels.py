"""Compares each kernel with the same computation in float64; NaN stays NaN."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hopd.compute import kernels

pytestmark = pytest.mark.skipif(kernels.compiled() is None, reason="the kernels need a C compiler, cc, on Linux")
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
WITHIN: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}
EPS = 1e-5


def random(*shape, seed, dtype=torch.float32, scale=1.0):
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def normed(x, weight):
    return weight * x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 150), DTYPES, st.booleans(), st.integers(0, 1000))
def test_a_norm_and_its_gradients_equal_the_reference(rows, width, dtype, adds, seed):
    x, weight = random(rows, width, seed=seed, dtype=dtype), random(width, seed=seed + 1, dtype=dtype)
    added, grad = (random(rows, width, seed=seed + i, dtype=dtype) for i in (2, 3))
    summed = x + added if adds else x.clone()
    out = kernels.norm(x, weight, EPS, added if adds else None)
    assert torch.equal(x, summed)  # the sum, which is the residual stream
    exact = summed.double().requires_grad_(), weight.double().requires_grad_()
    expected = normed(*exact)
    expected.backward(grad.double())
    torch.testing.assert_close(out.double(), expected.detach(), **WITHIN[dtype])
    for got, wanted in zip(kernels.norm_backward(grad, summed, weight, EPS), exact, strict=True):
        scale = max(1.0, float(wanted.grad.abs().max()))  # sums of rows, and of columns of small norm
        torch.testing.assert_close(got.double() / scale, wanted.grad / scale, **WITHIN[dtype])


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 150), DTYPES, st.sampled_from([1.0, 30.0]), st.integers(0, 1000))
def test_a_gated_activation_and_its_gradients_equal_the_reference(rows, width, dtype, scale, seed):
    both = random(rows, 2 * width, seed=seed, dtype=dtype, scale=scale)
    gate, up = both.chunk(2, dim=-1)
    grad = random(rows, width, seed=seed + 1, dtype=dtype)
    exact = gate.double().requires_grad_(), up.double().requires_grad_()
    expected = torch.nn.functional.silu(exact[0]) * exact[1]
    expected.backward(grad.double())
    torch.testing.assert_close(kernels.swiglu(gate, up).double(), expected.detach(), **WITHIN[dtype])
    gradients = kernels.swiglu_backward(grad, gate.contiguous(), up.contiguous())
    for got, wanted in zip(gradients, exact, strict=True):
        torch.testing.assert_close(got.double(), wanted.grad, **WITHIN[dtype])


@settings(max_examples=40)
@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.sampled_from([16, 32, 48, 64, 128, 256]),
    st.integers(0, 70), DTYPES, st.booleans(), st.integers(0, 1000),
)  # fmt: skip
def test_one_query_per_sequence_attends_from_its_first_position_to_itself(
    rows, groups, share, width, end, dtype, has_norms, seed
):
    heads, capacity, scale = groups * share, end + 3, width**-0.5
    qkv = random(rows, (heads + 2 * groups) * width, seed=seed, dtype=dtype)
    keys, values = (random(rows, groups, capacity, width, seed=seed + i, dtype=dtype) for i in (1, 2))
    angles = random(rows, width // 2, seed=seed + 3).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    first = torch.arange(rows) % (end + 1)
    norms = (random(width, seed=seed + 4, dtype=dtype), random(width, seed=seed + 5, dtype=dtype), EPS)

    q, k, v = qkv.double().view(rows, -1, width).split([heads, groups, groups], dim=1)
    if has_norms:
        q, k = normed(q, norms[0].double()), normed(k, norms[1].double())
    c, s = cos.double()[:, None], sin.double()[:, None]
    q, k = (x * c + torch.cat([-x[..., width // 2 :], x[..., : width // 2]], -1) * s for x in (q, k))
    all_keys, all_values = keys.double(), values.double()
    all_keys[:, :, end], all_values[:, :, end] = k, v
    scores = torch.einsum("rgsw,rgkw->rgsk", q.view(rows, groups, share, width), all_keys) * scale
    places = torch.arange(capacity)
    hidden = (places[None] < first[:, None]) | (places > end)
    weights = scores.masked_fill(hidden[:, None, None], float("-inf")).softmax(-1)
    expected = torch.einsum("rgsk,rgkw->rgsw", weights, all_values).reshape(rows, -1)

    got = kernels.attend(qkv, keys, values, cos, sin, first, end, scale, norms if has_norms else None)
    tolerance = 1e-4 if dtype == torch.float32 else 6e-2
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(keys.double(), all_keys, rtol=tolerance, atol=tolerance)
    assert torch.equal(values.double(), all_values)


@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_nan_stays_nan(dtype):
    """bf16 is rounded by integer arithmetic, which could turn NaN into a number."""
    x, weight = torch.ones(2, 32, dtype=dtype), torch.ones(32, dtype=dtype)
    x[1, 3] = float("nan")
    assert kernels.norm(x.clone(), weight, EPS).isnan().any(-1).tolist() == [False, True]
    assert kernels.norm_backward(x, torch.ones_like(x), weight, EPS)[0].isnan().any(-1).tolist() == [False, True]
    assert kernels.swiglu(x, torch.ones_like(x)).isnan().sum() == 1
    assert kernels.swiglu_backward(torch.ones_like(x), x, torch.ones_like(x))[0].isnan().sum() == 1
    qkv = torch.ones(2, 96, dtype=dtype)
    qkv[1, 0] = float("nan")
    keys, cos = torch.ones(2, 1, 4, 32, dtype=dtype), torch.ones(2, 32, dtype=dtype)
    out = kernels.attend(qkv, keys, keys.clone(), cos, cos, torch.zeros(2, dtype=torch.long), 2, 1.0)
    assert out.isnan().any(-1).tolist() == [False, True]


def test_without_kernels_rollouts_are_the_same(tmp_path):
    """Greedy tokens agree, and the note is right, without a compiler, with kernels turned off, and with kernels.

    Each runs in a process of its own, whose cache of kernels is empty.
    """
    script = (
        "import torch; from hopd.model import load; from hopd.rollout import NativeEngine, Prompt, Sampling\n"
        "from hopd.rollout.native.acceleration import decoding_note\n"
        "model = load('package:hopd/quickstart/student')\n"
        "made = NativeEngine(model).sample([Prompt(0, torch.tensor([5, 3, 4]))], 60, Sampling(0.0), 0)\n"
        "print(made[0].ids.tolist()); print(decoding_note(model))"
    )

    def run(**changes):
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | changes
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.splitlines()

    without, switched_off, with_one = run(CC="no-such-compiler"), run(HOPD_KERNELS="0"), run()
    assert without[0] == switched_off[0] == with_one[0]
    assert "not compiled (they need a C compiler" in without[1]
    assert "not compiled (HOPD_KERNELS=0)" in switched_off[1]
    assert "not compiled" not in with_one[1]
    assert [path.suffix for path in (tmp_path / "hopd").iterdir()] == [".so"]
