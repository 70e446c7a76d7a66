"""Compares every objective, value and gradient, with a plain float64 reference on whole logits."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hopd.objective import Full, Head, HiddenSignal, LossTokens, Sampled, StopClass, TopK, distillation_loss
from hopd.objective.head import CHUNK_BYTES, chunk_bytes_on, chunked_loss

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


@settings(max_examples=30, deadline=None)
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
