"""Checks that trajectories continue over several steps, and what their steps show to a controller."""

import pytest
import torch

from experiments.navigation.course import STEPS, Course, Trajectories
from experiments.navigation.distillation import distil
from experiments.navigation.evidence import LastMatrix, evidence
from experiments.navigation.flight import Flight
from experiments.navigation.policy import TransformerPolicy, log_prob
from hopd.horizon import Adaptive, Decision, build

HARD = Course(45.0, task=1.0, inertia=True, obstacle=2.0)
STRIDE = STEPS // 10


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return TransformerPolicy()


def continued(rollouts):
    return Decision(STRIDE, "continued", rollouts, whole=None, continues=True)


def test_a_trajectory_that_continues_is_the_one_that_went_on(policy):
    """One slot draws the same numbers in ten strides as at once, with constant weights."""
    at_once = HARD.sample(policy, 1, STEPS, generator())
    in_strides, draws = Trajectories.begin(1), generator()
    for _ in range(10):
        in_strides = HARD.extend(policy, in_strides, STRIDE, draws)
    for part, of_whole in zip(vars(in_strides).values(), vars(at_once).values(), strict=True):
        torch.testing.assert_close(part, of_whole)


def test_as_many_end_in_each_step_from_the_first_on(policy):
    flight, draws = Flight(HARD, 64), generator()
    ended = [flight.step(policy, continued(20), draws) for _ in range(25)]
    assert [sum(map(len, groups)) for groups in ended] == [2] * 25
    assert [[taken.length for taken in groups] for groups in ended] == [
        [STRIDE * min(10, 1 + step)] for step in range(25)
    ]


def test_a_step_without_continuing_has_the_rollouts_of_the_course(policy):
    groups = Flight(HARD, 4).step(policy, Decision(7, "cut"), generator())
    torch.testing.assert_close(groups[0].actions, HARD.sample(policy, 4, 7, generator()).actions)
    assert len(groups) == 1


def test_gradients_by_tenth_add_up_to_the_gradient(policy):
    watched = LastMatrix(policy.last_matrix)
    groups = [HARD.sample(policy, 3, length, generator()) for length in (STEPS, 20)]
    losses = [log_prob(policy.whole(taken.observations), taken.actions).sum() for taken in groups]
    actions = 3 * (STEPS + 20)
    (torch.stack(losses).sum() / actions).backward()
    sums = watched.sums(actions)
    whole = policy.last_matrix.weight.grad.double().flatten() * actions
    torch.testing.assert_close(sums.vectors.sum(0), whole, rtol=1e-4, atol=1e-4)
    assert sums.counts.diagonal().tolist() == [6] * 4 + [3] * 6
    assert not watched.inputs


def test_evidence_is_by_tenth(policy):
    torch.manual_seed(1)
    teacher, taken = TransformerPolicy(), HARD.sample(policy, 3, 20, generator())
    with torch.no_grad():
        mine, theirs = policy.whole(taken.observations), teacher.whole(taken.observations)
    found = evidence(0, continued(3), [(mine, theirs)], None)
    apart = torch.distributions.kl_divergence(torch.distributions.Normal(*mine), torch.distributions.Normal(*theirs))
    assert [block.tokens for block in found.blocks] == [15] * 4 + [0] * 6
    assert found.blocks[1].reverse_kl == pytest.approx(apart.sum(-1)[:, 5:10].mean().item(), rel=1e-4)
    assert (found.rollouts, found.mean_length) == (3, 20)


@pytest.mark.parametrize(
    "horizon", [{"controller": "truncated", "ratio": 0.1, "continue": True}, {"controller": "adaptive"}]
)
def test_continued_steps_have_a_tenth_of_the_serial_actions(policy, tmp_path, horizon):
    torch.manual_seed(1)
    curve = distil(
        policy, TransformerPolicy(), HARD, build(horizon, STEPS, 64), 20, 0, tmp_path / "ledger.json", every=20
    )
    assert curve[-1].serial_tokens == 20 * STRIDE


def test_the_adaptive_controller_finds_gradients(policy, tmp_path):
    torch.manual_seed(1)
    controller = Adaptive(STEPS, per_step=64)
    distil(policy, TransformerPolicy(), HARD, controller, 20, 0, tmp_path / "ledger.json")
    assert controller.averages.steps == 20
    assert controller.averages.noise() > 0
