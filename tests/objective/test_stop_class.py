"""Compares every objective with ends as one class, value and gradient, with the plain float64 reference."""

from dataclasses import replace

import pytest
import torch

from hopd.objective import Full, Head, HiddenSignal, LossTokens, Sampled, StopClass, TopK, distillation_loss
from tests.objective.test_reference import OBJECTIVES, N, V, reference, setup

ENDS = (2, 5, 11)


@pytest.mark.parametrize(
    "objective", [*OBJECTIVES, TopK(k=10, tail="bucket"), TopK(k=4, candidates="teacher")], ids=str
)
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.6, 2.0)])
def test_with_ends_as_one_class_value_and_gradient_equal_the_reference(objective, temperature, softcap):
    objective = replace(objective, stop="class")
    hidden, head, signal, at = setup(seed=1, softcap=softcap)
    assert {2, 5, 11} & set(at.tokens.tolist())
    leaves = [hidden, head.weight, head.bias]
    expected = reference(objective, hidden, head, signal, at, temperature, ENDS)
    expected_gradients = torch.autograd.grad(expected, leaves)

    signal = HiddenSignal(signal.head, signal.hidden, temperature)
    stop = StopClass.of(objective, {*ENDS, V, V + 7}, V)
    loss, statistics = distillation_loss(
        objective, head, hidden, signal, at, temperature, chunk_bytes=2 * 4 * V, stop=stop
    )
    gradients = torch.autograd.grad(loss, leaves)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
    # What is compared with the sampler's log-prob is that of the token itself.
    own, _ = distillation_loss(replace(objective, stop="token"), head, hidden, signal, at, temperature)
    _, unmerged = distillation_loss(Full(), head, hidden, signal, at, temperature)
    torch.testing.assert_close(statistics.log_prob, unmerged.log_prob, check_dtype=False)
    assert abs(float(own) - float(loss)) > 1e-3


@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_ends_that_share_their_mass_otherwise_have_no_loss_as_one_class(gamma):
    """The teacher exchanges the student's logits of two ends: it stops as often, by the other id."""
    hidden, head, _, at = setup(seed=1)
    exchanged = torch.arange(V)
    exchanged[[2, 5]] = torch.tensor([5, 2])
    signal = HiddenSignal(Head(head.weight.detach()[exchanged], head.bias.detach()[exchanged]), hidden.detach())
    for objective in (Full(stop="class"), Sampled(gamma, stop="class"), TopK(k=4, stop="class")):
        stop = StopClass.of(objective, (2, 5), V)
        loss, statistics = distillation_loss(objective, head, hidden, signal, at, stop=stop)
        assert abs(float(loss.detach())) < 1e-6
        assert float(statistics.log_ratio.abs().max()) < 1e-6
        assert max(float(g.abs().max()) for g in torch.autograd.grad(loss, [hidden, head.weight, head.bias])) < 1e-6
        by_token, _ = distillation_loss(replace(objective, stop="token"), head, hidden, signal, at)
        assert float(torch.autograd.grad(by_token, hidden)[0].abs().max()) > 1e-3


def test_the_sampled_estimators_mean_over_all_tokens_is_the_gradient_of_the_class_too():
    """Whatever the policy that sampled, its ratio without a cap makes up for it."""
    hidden, head, signal, at = setup()
    every, position = torch.arange(V).repeat(N), torch.arange(N).repeat_interleave(V)
    behaviour = torch.log_softmax(torch.randn(N, V, generator=torch.Generator().manual_seed(4)).double(), -1).flatten()
    spread = LossTokens(every, position, torch.zeros_like(position), behaviour, behaviour.exp())
    wide = HiddenSignal(signal.head, signal.hidden[position])
    stop = StopClass(ENDS)
    loss, _ = distillation_loss(Sampled(importance_cap=1e6), head, hidden[position], wide, spread, stop=stop)
    mean_gradients = torch.autograd.grad(loss, [hidden, head.weight, head.bias])
    at = replace(at, weight=torch.ones(N, dtype=torch.float64))
    exact, _ = distillation_loss(Full(), head, hidden, signal, at, stop=stop)
    for mean, wanted in zip(mean_gradients, torch.autograd.grad(exact, [hidden, head.weight, head.bias]), strict=True):
        torch.testing.assert_close(mean, wanted, rtol=1e-4, atol=1e-5)
