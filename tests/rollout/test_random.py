import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hopd.recipe.sampling import Sampling
from hopd.rollout import fold, uniform
from hopd.rollout.sampling import draw_tokens, inverse_cdf

counters = st.integers(0, 2**40)


def draw(seed, prompt, sample, positions=64):
    return uniform(seed, torch.tensor([prompt]), torch.tensor([sample]), torch.arange(positions))[0]


@given(st.integers(0, 2**63), counters, st.integers(0, 1000))
def test_a_draw_depends_on_its_counters_and_nothing_else(seed, prompt, sample):
    alone = draw(seed, prompt, sample)
    crowd = uniform(seed, torch.tensor([prompt + 1, prompt, 7]), torch.tensor([0, sample, 1]), torch.arange(10, 40))
    assert torch.equal(crowd[1], alone[10:40])
    assert bool((alone >= 0).all())
    assert bool((alone < 1).all())


@given(st.integers(0, 2**62), counters, st.integers(0, 1000))
def test_every_counter_changes_the_draws(seed, prompt, sample):
    alone = draw(seed, prompt, sample)
    for other in (draw(seed + 1, prompt, sample), draw(seed, prompt + 1, sample), draw(seed, prompt, sample + 1)):
        assert float((other - alone).abs().min()) > 0


def test_the_draws_are_uniform_and_independent():
    u = uniform(3, torch.arange(500), torch.zeros(500, dtype=torch.long), torch.arange(400))
    counts = torch.histc(u.flatten().float(), bins=100, min=0, max=1)
    expected = u.numel() / 100
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert 50 < chi_squared < 160  # 99 degrees of freedom: this is far outside of a 99.9 % interval
    for a, b in ((u[:, :-1], u[:, 1:]), (u[:-1], u[1:])):
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(float(correlation)) < 4 / u.numel() ** 0.5


def test_folded_seeds_differ():
    assert len({fold(a, b) for a in range(100) for b in range(100)}) == 10_000
    assert fold(1, 2) != fold(2, 1)


@settings(max_examples=60)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.25, 1.0]), min_size=1, max_size=30), st.floats(0, 1, exclude_max=True))
def test_inverse_cdf_never_gives_a_token_of_weight_zero(weights, u):
    if sum(weights) == 0:
        weights[0] = 1.0
    token = int(inverse_cdf(torch.tensor([weights]), torch.tensor([u], dtype=torch.float64)))
    assert weights[token] > 0


def test_inverse_cdf_at_the_very_end_of_a_large_vocabulary():
    weights = torch.full((1, 50_000), 1 / 50_000)
    weights[0, -10:] = 0
    token = int(inverse_cdf(weights, torch.tensor([1 - 2**-53], dtype=torch.float64)))
    assert token <= 49_989


@settings(max_examples=40)
@given(st.integers(513, 3000), st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_inverse_cdf_of_a_large_vocabulary_is_that_of_one_long_sum(size, seed, u):
    weights = torch.rand(4, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 8
    weights[weights < 0.5] = 0.0
    weights[:, seed % size] = 1.0
    tokens = inverse_cdf(weights, torch.full((4,), u, dtype=torch.float64))
    target = u * weights.sum(-1)
    chosen, up_to = weights.gather(-1, tokens[:, None])[:, 0], weights.cumsum(-1).gather(-1, tokens[:, None])[:, 0]
    assert bool((chosen > 0).all())
    assert bool((up_to - chosen <= target + 1e-9).all() and (target <= up_to + 1e-9).all())


def test_log_probs_of_a_large_vocabulary_are_those_of_log_softmax():
    logits = 5 * torch.randn(8, 2000, generator=torch.Generator().manual_seed(0))
    tokens, log_probs = draw_tokens(Sampling(0.7), logits, torch.linspace(0, 0.999, 8))
    expected = (logits / 0.7).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(log_probs, expected)


def frequencies(sampling, logits, draws=40_000):
    u = uniform(0, torch.arange(draws), torch.zeros(draws, dtype=torch.long), torch.zeros(1, dtype=torch.long))[:, 0]
    tokens, log_probs = draw_tokens(sampling, logits.expand(draws, -1), u)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / draws, tokens, log_probs


def test_tokens_come_as_often_as_the_policy_says():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    for temperature in (1.0, 0.5, 2.0):
        found, tokens, log_probs = frequencies(Sampling(temperature), logits)
        policy = (logits / temperature).softmax(-1)
        assert float((found - policy).abs().max()) < 0.01
        torch.testing.assert_close(log_probs, policy.log()[tokens])


def test_top_k_and_top_p_cut_the_tail_and_nothing_else():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])  # 0.08, 0.21, 0.56, 0.03, 0.13
    found, *_ = frequencies(Sampling(top_k=2), logits)
    assert set(found.nonzero()[:, 0].tolist()) == {1, 2}
    torch.testing.assert_close(found[2] / found[1], torch.tensor(torch.e), rtol=0.05, atol=0)
    found, *_ = frequencies(Sampling(top_p=0.6), logits)
    assert set(found.nonzero()[:, 0].tolist()) == {2, 1}
    found, *_ = frequencies(Sampling(top_p=0.85), logits)
    assert set(found.nonzero()[:, 0].tolist()) == {2, 1, 4}
    found, *_ = frequencies(Sampling(top_p=1e-6), logits)
    assert set(found.nonzero()[:, 0].tolist()) == {2}


def test_a_random_number_decides_alone_whatever_the_cut():
    """Inverse-CDF over the sorted tokens: with nothing cut, top-p 1 and top-k V sample the same policy."""
    logits = torch.randn(6, generator=torch.Generator().manual_seed(0))
    found, *_ = frequencies(Sampling(top_k=6), logits)
    assert float((found - logits.softmax(-1)).abs().max()) < 0.01
