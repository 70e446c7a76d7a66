"""Compares every objective, value and gradient, with a plain float64 reference on whole logits."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hopd.objective import Full, Head, HiddenSignal, LossTokens, Sampled, TopK, distillation_loss
from hopd.objective.head import chunked_loss

N, D, V, ROWS = 11, 5, 13, 3


def setup(seed=0, scale=1.0, softcap=None, bias=True):
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    hidden = rand(N, D).requires_grad_()
    weight = rand(V, D).requires_grad_()
    offset = rand(V).requires_grad_() if bias else None
    teacher_hidden, teacher_weight = rand(N, D), rand(V, D)
    row = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    position = torch.tensor([0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3])
    at = LossTokens(
        tokens=torch.randint(V, (N,), generator=g),
        row=row,
        position=position,
        behaviour=-torch.rand(N, generator=g, dtype=torch.float64) * 3,
        weight=torch.rand(N, generator=g, dtype=torch.float64),
    )
    head = Head(weight, offset, scale, softcap)
    return hidden, head, HiddenSignal(Head(teacher_weight), teacher_hidden), at


def reference(objective, hidden, head, signal, at, temperature=1.0, ends=()):
    """Computes the loss position by position, straight from the definitions. The probabilities of `ends` are added up
    first, at the place of the first one; the others are no outcomes any more."""
    logits = hidden @ head.weight.T + (0 if head.bias is None else head.bias)
    logits = logits * head.scale
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    log_p = torch.log_softmax(logits / temperature, -1)
    log_q = torch.log_softmax(signal.hidden @ signal.head.weight.T / temperature, -1)
    sampled, own = at.tokens, log_p
    if ends:
        outcomes = [v for v in range(V) if v not in ends[1:]]
        adds = torch.tensor([[float(o == v or (o == ends[0] and v in ends)) for o in outcomes] for v in range(V)])
        log_p, log_q = ((log.exp() @ adds.double()).log() for log in (log_p, log_q))
        tokens = torch.tensor([outcomes.index(ends[0] if y in ends else y) for y in sampled.tolist()])
        at = replace(at, tokens=tokens)
    log_ratios = [float(log_q[n, at.tokens[n]] - log_p[n, at.tokens[n]]) for n in range(N)]
    # The sampler's log-prob is that of the very token, so the token's is compared with it.
    to_behaviour = [float(own[n, sampled[n]] - at.behaviour[n]) for n in range(N)]
    total = torch.zeros((), dtype=torch.float64)
    for n in range(N):
        p, q, y = log_p[n].exp(), log_q[n].exp(), at.tokens[n]
        if objective.estimator == "sampled":
            credit = sum(
                objective.gamma ** int(at.position[k] - at.position[n]) * log_ratios[k]
                for k in range(N)
                if at.row[k] == at.row[n] and at.position[k] >= at.position[n]
            )
            if objective.control_variate:
                credit += float((p * (log_p[n] - log_q[n])).sum())
            if objective.importance_cap is not None:
                credit *= min(math.exp(to_behaviour[n]), objective.importance_cap)
            loss = -credit * log_p[n, y]
        elif objective.estimator == "top_k":
            ranked = log_q[n] if objective.candidates == "teacher" else log_p[n]
            best = torch.sort(ranked, descending=True).indices[: objective.k]
            s, g = log_p[n][best], log_q[n][best]
            if objective.tail == "paper":
                w = (s.exp() / s.exp().sum()).detach()
                loss = -(w * (g - s.detach()) * s).sum()
            elif objective.tail == "renormalised":
                sp, gp = s.exp() / s.exp().sum(), g.exp() / g.exp().sum()
                loss = (sp * (sp.log() - gp.log())).sum()
            else:
                sp = torch.cat([s.exp(), 1 - s.exp().sum()[None]])
                gp = torch.cat([g.exp(), 1 - g.exp().sum()[None]])
                loss = (sp * (sp.log() - gp.log())).sum()
        elif objective.divergence == "reverse_kl":
            loss = (p * (log_p[n] - log_q[n])).sum()
        elif objective.divergence == "forward_kl":
            loss = (q * (log_q[n] - log_p[n])).sum()
        else:
            m = objective.beta * q + (1 - objective.beta) * p
            loss = objective.beta * (q * (q / m).log()).sum() + (1 - objective.beta) * (p * (p / m).log()).sum()
        if objective.estimator != "sampled" and objective.importance_cap is not None:
            before = [s for s in range(N) if at.row[s] == at.row[n] and at.position[s] < at.position[n]]
            ratio = math.prod(math.exp(to_behaviour[s]) for s in before)
            loss = min(ratio, objective.importance_cap) * loss
        total = total + at.weight[n] * loss
    return total


OBJECTIVES = [
    Sampled(),
    Sampled(gamma=1.0),
    Sampled(gamma=0.7),
    Sampled(control_variate=True),
    Sampled(gamma=0.5, control_variate=True, importance_cap=1.5),
    TopK(k=4),
    TopK(k=4, tail="renormalised"),
    TopK(k=4, tail="bucket"),
    Full(),
    Full(divergence="forward_kl"),
    Full(divergence="jsd", beta=0.5),
    Full(divergence="jsd", beta=0.1),
    Sampled(importance_cap=0.5),
    TopK(k=4, importance_cap=0.5),
    TopK(k=4, tail="renormalised", importance_cap=0.5),
    TopK(k=4, tail="bucket", importance_cap=0.5),
    Full(importance_cap=0.5),
    Full(divergence="forward_kl", importance_cap=1e-3),
    Full(divergence="jsd", importance_cap=1e6),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 2.0)])
def test_value_and_gradient_equal_the_reference(objective, temperature, scale, softcap):
    hidden, head, signal, at = setup(scale=scale, softcap=softcap)
    leaves = [hidden, head.weight, head.bias]
    expected = reference(objective, hidden, head, signal, at, temperature)
    expected_gradients = torch.autograd.grad(expected, leaves)

    signal = HiddenSignal(signal.head, signal.hidden, temperature)
    # Chunks of two positions: the result must not depend on them.
    loss, _ = distillation_loss(objective, head, hidden, signal, at, temperature, chunk_bytes=2 * 4 * V)
    gradients = torch.autograd.grad(loss, leaves)

    # Logits are float32 by design, which limits the precision.
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient(objective):
    hidden, head, _, at = setup()
    signal = HiddenSignal(Head(head.weight.detach(), head.bias.detach()), hidden.detach())
    loss, statistics = distillation_loss(objective, head, hidden, signal, at)
    assert abs(float(loss.detach())) < 1e-6
    assert float(statistics.log_ratio.abs().max()) < 1e-6
    for gradient in torch.autograd.grad(loss, [hidden, head.weight, head.bias]):
        assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("control_variate", [False, True])
def test_the_sampled_estimators_mean_over_all_tokens_is_the_reverse_kl_gradient(control_variate):
    hidden, head, signal, at = setup()
    every = torch.arange(V).repeat(N)
    position = torch.arange(N).repeat_interleave(V)
    with torch.no_grad():
        probability = torch.softmax(hidden @ head.weight.T + head.bias, -1).flatten()
    spread = LossTokens(every, position, torch.zeros_like(position), torch.zeros(N * V).double(), probability)
    wide = HiddenSignal(signal.head, signal.hidden[position])
    sampled = Sampled(control_variate=control_variate)
    loss, _ = distillation_loss(sampled, head, hidden[position], wide, spread)
    mean_gradients = torch.autograd.grad(loss, [hidden, head.weight, head.bias])

    at = LossTokens(at.tokens, at.row, at.position, at.behaviour, torch.ones(N, dtype=torch.float64))
    exact, _ = distillation_loss(Full(), head, hidden, signal, at)
    for mean, wanted in zip(mean_gradients, torch.autograd.grad(exact, [hidden, head.weight, head.bias]), strict=True):
        torch.testing.assert_close(mean, wanted, rtol=1e-4, atol=1e-5)


def test_the_control_variate_lowers_the_second_moment():
    hidden, head, signal, _ = setup()
    with torch.no_grad():
        log_p = torch.log_softmax(hidden @ head.weight.T + head.bias, -1)
        log_ratio = signal.log_probs(slice(0, N)).double() - log_p
        baseline = (log_p.exp() * log_ratio).sum(-1, keepdim=True)
        plain, centred = ((log_p.exp() * a**2).sum() for a in (log_ratio, log_ratio - baseline))
    assert float(centred) < float(plain)


def test_tokens_of_weight_zero_change_nothing():
    hidden, head, signal, at = setup()
    silent = at.weight.clone()
    silent[4:] = 0
    part = LossTokens(*(t[:4] for t in (at.tokens, at.row, at.position, at.behaviour, at.weight)))
    whole = LossTokens(at.tokens, at.row, at.position, at.behaviour, silent)
    a, _ = distillation_loss(Full(), head, hidden, signal, whole)
    b, _ = distillation_loss(Full(), head, hidden[:4], HiddenSignal(signal.head, signal.hidden[:4]), part)
    torch.testing.assert_close(a, b)


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 100))
def test_the_chunk_size_does_not_change_the_result(positions, chunk, seed):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(V, D, generator=g, requires_grad=True)
    hidden = torch.randn(positions, D, generator=g, requires_grad=True)
    terms = lambda logits, rows: (logits.logsumexp(-1) ** 2, logits[:, :1])  # noqa: E731
    results = []
    for size in (chunk, positions):
        total, statistics = chunked_loss(Head(weight), hidden, terms, chunk_bytes=size * 4 * V)
        results.append((total, statistics, *torch.autograd.grad(3 * total, [hidden, weight])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_block_size_does_not_change_the_result(objective, monkeypatch):
    """It uses blocks of two positions in chunks of five; the teacher's logits are projected chunk by chunk too."""
    results = []
    for block, chunk in ((N, N), (2, 5)):
        hidden, head, signal, at = setup()
        monkeypatch.setattr("hopd.objective.head.BLOCK_BYTES", block * 4 * V)
        loss, statistics = distillation_loss(objective, head, hidden, signal, at, chunk_bytes=chunk * 4 * V)
        results.append((loss, *statistics, *torch.autograd.grad(loss, [hidden, head.weight, head.bias])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_teachers_logits_do_not_depend_on_the_steps_in_which_they_are_read():
    _, _, signal, at = setup()
    whole = signal.log_probs(slice(0, N))
    for steps in ([(0, 3), (3, 6), (6, 11)], [(9, 11), (0, 2), (1, 8)]):
        fresh = HiddenSignal(signal.head, signal.hidden, chunk_bytes=6 * 4 * V)
        for start, stop in steps:
            torch.testing.assert_close(fresh.log_probs(slice(start, stop)), whole[start:stop])
            torch.testing.assert_close(
                fresh.log_prob(slice(start, stop), at.tokens[start:stop]),
                whole[start:stop].gather(-1, at.tokens[start:stop, None])[:, 0],
            )


def test_a_second_backward_pass_is_refused():
    """The first has scaled the gradient in place."""
    hidden, head, signal, at = setup()
    loss, _ = distillation_loss(Full(), head, hidden, signal, at)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()
