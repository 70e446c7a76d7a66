import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hopd.errors import RecipeError
from hopd.objective import Full, Sampled, TopK, discounted_credit
from hopd.objective.divergence import forward_kl, jsd, reverse_kl
from hopd.objective.estimator import top_k


def pair(seed, vocabulary=9, positions=6, spread=3.0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda: (spread * torch.randn(positions, vocabulary, generator=g)).log_softmax(-1)  # noqa: E731
    return draw(), draw()


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_divergences_are_not_negative_and_zero_only_between_equals(seed, beta):
    s, g = pair(seed)
    for divergence in (reverse_kl, forward_kl, lambda a, b: jsd(a, b, beta)):
        assert bool((divergence(s, g) > 0).all())
        assert float(divergence(s, s).abs().max()) < 1e-5


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_jsd_has_both_directions_as_its_ends(seed):
    s, g = (x.double() for x in pair(seed, spread=1.0))
    torch.testing.assert_close(jsd(s, g, 1e-6) / 1e-6, forward_kl(s, g), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(jsd(s, g, 1 - 1e-6) / 1e-6, reverse_kl(s, g), rtol=1e-3, atol=1e-5)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 8))
def test_the_bucket_is_a_lower_bound_that_grows_with_k(seed, k):
    s, g = pair(seed)
    whole = reverse_kl(s, g)
    coarse = top_k(s, g, k, "bucket")
    assert bool((coarse <= whole + 1e-5).all())
    if k > 1:
        assert bool((top_k(s, g, k - 1, "bucket") <= coarse + 1e-5).all())


@settings(max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(0, 1), st.integers(0, 1000))
def test_credit_is_the_discounted_sum_of_later_signals(lengths, gamma, seed):
    row = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    position = torch.cat([torch.arange(n) for n in lengths])
    r = torch.randn(len(row), generator=torch.Generator().manual_seed(seed)).double()
    expected = [
        sum(
            gamma ** int(position[k] - position[t]) * float(r[k])
            for k in range(len(r))
            if row[k] == row[t] and position[k] >= position[t]
        )
        for t in range(len(r))
    ]
    torch.testing.assert_close(discounted_credit(r, row, position, gamma), torch.tensor(expected).double())


@pytest.mark.parametrize(
    ("estimator", "options", "sentence"),
    [
        (Full, {"divergence": "jsd", "beta": 1.0}, "forward_kl and reverse_kl"),
        (TopK, {"k": 0}, "at least 1"),
        (TopK, {"tail": "bucket", "candidates": "teacher"}, "write tail: paper or renormalised"),
        (Sampled, {"gamma": 2.0}, "from 0 .* to 1"),
        (Sampled, {"importance_cap": -1.0}, "importance_cap must be positive, got -1"),
        (TopK, {"importance_cap": 0.0}, "importance_cap must be positive, got 0"),
        (Full, {"importance_cap": float("nan")}, "importance_cap must be positive, got nan"),
    ],
)
def test_values_out_of_range_are_errors(estimator, options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        estimator(**options)
