"""Tests the correction for rollouts that older weights sampled: its law, its ratios, and how they are carried."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hopd.objective import Detail, Full, Head, HiddenSignal, LossTokens, Sampled, TopK, distillation_loss
from hopd.objective.divergence import reverse_kl
from hopd.objective.importance import PrefixSums
from hopd.rollout import FinishReason, Prompt, Rollout, pack

V, D, LONGEST = 3, 4, 4
STOP = 0
EXACT = [
    Full,
    lambda **cap: Full("forward_kl", **cap),
    lambda **cap: Full("jsd", **cap),
    lambda **cap: TopK(2, **cap),
    lambda **cap: TopK(2, "renormalised", **cap),
    lambda **cap: TopK(2, "bucket", **cap),
    lambda **cap: TopK(2, candidates="teacher", **cap),
]
NAMES = ["reverse_kl", "forward_kl", "jsd", "paper", "renormalised", "bucket", "teacher"]


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Tree:
    """All prefixes and all responses of three tokens, one of which stops, up to four tokens long.

    Each prefix has a hidden state of its own, and each of student, teacher and sampler its own table of them.
    """

    def __init__(self):
        prefixes: list[tuple[int, ...]] = [()]
        self.responses: list[tuple[int, ...]] = []
        for prefix in prefixes:
            for longer in ((*prefix, token) for token in range(V)):
                ended = longer[-1] == STOP or len(longer) == LONGEST
                (self.responses if ended else prefixes).append(longer)
        self.place = {prefix: n for n, prefix in enumerate(prefixes)}
        self.hidden = random(0, len(prefixes), D).requires_grad_()
        self.head = Head(random(1, V, D).requires_grad_())
        self.teacher = random(2, len(prefixes), D)
        self.student = self.head.project(self.hidden).detach().log_softmax(-1)
        self.sampler = (self.student + random(3, len(prefixes), V)).log_softmax(-1)

    def probability(self, policy, tokens):
        return sum(policy[self.place[tokens[:t]], token] for t, token in enumerate(tokens)).exp() if tokens else 1.0

    def gradients(self, objective, at, places):
        signal = HiddenSignal(Head(self.head.weight.detach()), self.teacher[places])
        loss, _ = distillation_loss(objective, self.head, self.hidden[places], signal, at)
        return (loss.detach(), *torch.autograd.grad(loss, [self.hidden, self.head.weight]))

    def mean_over_rollouts(self, objective):
        """The mean over rollouts of the sampler, each with its probability."""
        steps = [(row, t) for row, response in enumerate(self.responses) for t in range(len(response))]
        places = torch.tensor([self.place[self.responses[row][:t]] for row, t in steps])
        tokens = torch.tensor([self.responses[row][t] for row, t in steps])
        weights = [self.probability(self.sampler, self.responses[row]) for row, _ in steps]
        row, position = torch.tensor(steps).T
        at = LossTokens(tokens, row.contiguous(), position, self.sampler[places, tokens], torch.stack(weights))
        return self.gradients(objective, at, places)

    def mean_over_prefixes(self, objective, policy):
        """The mean over the prefixes that a policy reaches, of a loss that depends on nothing else."""
        prefixes = list(self.place)
        weight = torch.tensor([float(self.probability(policy, prefix)) for prefix in prefixes], dtype=torch.float64)
        zeros, none = torch.zeros(len(prefixes), dtype=torch.long), torch.zeros(len(prefixes), dtype=torch.float64)
        return self.gradients(objective, LossTokens(zeros, zeros, zeros, none, weight), torch.arange(len(prefixes)))


@pytest.mark.parametrize("objective", EXACT, ids=NAMES)
def test_the_mean_over_rollouts_of_another_policy_is_the_students_own(objective):
    tree = Tree()
    wanted = tree.mean_over_prefixes(objective(), tree.student)
    for mean, own in zip(tree.mean_over_rollouts(objective(importance_cap=1e6)), wanted, strict=True):
        torch.testing.assert_close(mean.double(), own.double(), rtol=1e-4, atol=1e-6)
    for biased in (objective(), objective(importance_cap=1.0)):
        assert float((tree.mean_over_rollouts(biased)[1] - wanted[1]).abs().max()) > 1e-2


def test_the_sampled_estimator_corrects_its_token_in_the_states_that_the_sampler_reached():
    tree = Tree()
    wanted = tree.mean_over_prefixes(Full(), tree.sampler)
    for mean, own in zip(tree.mean_over_rollouts(Sampled(importance_cap=1e6))[1:], wanted[1:], strict=True):
        torch.testing.assert_close(mean, own, rtol=1e-4, atol=1e-6)
    assert float((tree.mean_over_rollouts(Sampled())[1] - wanted[1]).abs().max()) > 1e-2


LENGTHS = [7, 1, 4, 9, 3]
WORDS = 11


def stale_rollouts():
    """Rollouts whose log-probs are those of some other policy."""
    made = []
    for i, length in enumerate(LENGTHS):
        ids = torch.randint(WORDS, (length,), generator=torch.Generator().manual_seed(i))
        behaviour = -2.5 + random(10 + i, length) / 2
        made.append(Rollout(Prompt(i, torch.arange(2) + i), 0, ids, behaviour, FinishReason.STOP))
    return made


class Models:
    """A causal student and teacher whose state at a token is the sum of the embeddings up to it."""

    def __init__(self):
        self.embedding = random(20, WORDS, D).requires_grad_()
        self.head = Head(random(21, WORDS, D).requires_grad_())
        self.teacher = random(22, WORDS, D)

    def loss(self, objective, batch, chunk=None):
        own, other = (batch.states(table[batch.ids].cumsum(1)) for table in (self.embedding, self.teacher))
        signal = HiddenSignal(Head(self.head.weight.detach()), other)
        return distillation_loss(objective, self.head, own, signal, batch.at, chunk_bytes=chunk and chunk * 4 * WORDS)

    def gradients(self, objective, batches, chunk=None):
        total = sum(self.loss(objective, batch, chunk)[0] for batch in batches)
        return (total.detach(), *torch.autograd.grad(total, [self.embedding, self.head.weight]))


WINDOWS = {"whole": lambda length: (0, length), "last": lambda length: (max(0, length - 4), length)}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("objective", [Full(importance_cap=1.5), TopK(4, importance_cap=1.5)], ids=["full", "top_k"])
def test_packing_splitting_and_chunks_do_not_change_the_gradient(monkeypatch, objective, window):
    models, rollouts = Models(), stale_rollouts()
    spans = [WINDOWS[window](rollout.length) for rollout in rollouts]
    apart = models.gradients(objective, [pack([r], [span], 1)[0] for r, span in zip(rollouts, spans, strict=True)])
    for budget, chunk, block in ((1, 1, 1), (22, 5, 2), (200, None, 3), (200, 7, 100)):
        monkeypatch.setattr("hopd.objective.head.BLOCK_BYTES", block * 4 * WORDS)
        batches = pack(rollouts[::-1], spans[::-1], budget)
        assert len(batches) == {1: 5, 22: 2, 200: 1}[budget]
        for a, b in zip(models.gradients(objective, batches, chunk), apart, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", WINDOWS)
def test_the_ratio_is_the_product_over_the_loss_tokens_before(window):
    models, rollouts = Models(), stale_rollouts()
    (batch,) = pack(rollouts, [WINDOWS[window](rollout.length) for rollout in rollouts], 200)
    _, plain = models.loss(Full(), batch)
    _, corrected = models.loss(Full(importance_cap=1.2), batch)
    ratios = corrected.loss / plain.loss
    log_ratios = plain.log_prob - batch.at.behaviour
    for n, row in enumerate(batch.at.row):
        before = (batch.at.row == row) & (batch.at.position < batch.at.position[n])
        assert float(ratios[n]) == pytest.approx(min(float(log_ratios[before].sum().exp()), 1.2), rel=1e-4)
    assert {float(r) > 1.19 for r in ratios} == {True, False}
    assert float(ratios[batch.at.row.diff(prepend=torch.tensor([-1])) > 0].sub(1).abs().max()) < 1e-6


@pytest.mark.parametrize("objective", [Sampled, *EXACT], ids=["sampled", *NAMES])
def test_a_student_that_sampled_by_itself_is_not_corrected(objective):
    models, spans = Models(), [(0, length) for length in LENGTHS]
    (batch,) = pack(stale_rollouts(), spans, 200)
    own = models.loss(Full(), batch)[1].log_prob
    by_position = {(int(r), int(t)): n for n, (r, t) in enumerate(zip(batch.at.row, batch.at.position, strict=True))}
    fresh = [
        Rollout(r.prompt, 0, r.ids, own[[by_position[row, t] for t in range(r.length)]], r.finish)
        for row, r in enumerate(batch.rollouts)
    ]
    batches = pack(fresh, [(0, r.length) for r in fresh], 200)
    plain = models.gradients(objective(), batches)
    for a, b in zip(models.gradients(objective(importance_cap=1.5), batches), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_correction_needs_no_second_pass_over_the_head(monkeypatch):
    models, seen, project = Models(), [], Head.project
    (batch,) = pack(stale_rollouts(), [(0, length) for length in LENGTHS], 200)

    def counted(head, hidden):
        seen.append(len(hidden))
        return project(head, hidden)

    monkeypatch.setattr(Head, "project", counted)
    models.loss(Full(importance_cap=2.0), batch)
    assert seen == [sum(LENGTHS)] * 2  # the student's and the teacher's


class Own:
    needs, gamma, k, estimator = Detail.VOCABULARY, 0.0, 0, "own"

    def per_token(self, at):
        return at.prefix_importance(1.5) * reverse_kl(at.student, at.teacher)


def test_an_estimator_of_ones_own_can_ask_for_the_same_ratio():
    models, batches = Models(), pack(stale_rollouts(), [(0, length) for length in LENGTHS], 30)
    expected = models.gradients(Full(importance_cap=1.5), batches)
    for a, b in zip(models.gradients(Own(), batches), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sets(st.integers(1, 50)), st.integers(0, 1000))
def test_sums_before_a_token_do_not_depend_on_blocks_or_on_other_rollouts(lengths, cuts, seed):
    row = torch.cat([torch.full((length,), 2 * i) for i, length in enumerate(lengths)])
    values = random(seed, len(row)).float()
    values[: lengths[0]] *= 1e6
    sums = PrefixSums(row)
    ends = [0, *sorted(cut for cut in cuts if cut < len(row)), len(row)]
    found = torch.cat([sums.before(slice(a, b), values[a:b]) for a, b in pairwise(ends)])
    for n in range(len(row)):
        expected = float(values[:n][row[:n] == row[n]].double().sum())
        assert float(found[n]) == pytest.approx(expected, rel=1e-8, abs=1e-7)


def test_a_block_that_was_left_out_is_not_taken_for_zero():
    sums = PrefixSums(torch.zeros(6, dtype=torch.long))
    sums.before(slice(0, 2), torch.ones(2))
    assert bool(sums.before(slice(4, 6), torch.ones(2)).isnan().all())
