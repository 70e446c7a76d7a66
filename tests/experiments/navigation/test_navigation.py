"""Checks courses, policies, and the distillation of one policy into another."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.navigation.course import DISTANCE, STEPS, Course
from experiments.navigation.distillation import distil
from experiments.navigation.policy import MlpPolicy, OptimalPolicy, TransformerPolicy, log_prob
from experiments.navigation.reinforce import reinforce
from hopd.horizon import Controller, Full, Progressive, Truncated

SIMPLE, HARD = Course(30.0, task=1.0), Course(45.0, task=1.0, inertia=True, obstacle=2.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def a_policy(kind, seed=0):
    torch.manual_seed(seed)
    return kind()


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_a_log_prob_is_that_of_two_independent_normals(seed):
    mean, actions = torch.randn(2, 5, 3, 2, generator=generator(seed))
    std = torch.rand(5, 3, 2, generator=generator(seed + 1)) + 0.05
    expected = torch.distributions.Normal(mean, std).log_prob(actions).sum(-1)
    torch.testing.assert_close(log_prob((mean, std), actions), expected)


@pytest.mark.parametrize(("kind", "course"), [(MlpPolicy, SIMPLE), (TransformerPolicy, HARD)])
def test_a_policy_says_the_same_step_by_step_and_all_at_once(kind, course):
    """The policy that is updated is then the one that sampled; and no action depends on later observations."""
    policy = a_policy(kind)
    seen = course.sample(policy, 3, 12, generator()).observations
    memory = policy.memory()
    with torch.no_grad():
        one_by_one = [policy.step(seen[:, t], memory) for t in range(12)]
        means, stds = (torch.stack(parts, dim=1) for parts in zip(*one_by_one, strict=True))
        torch.testing.assert_close(policy.whole(seen), (means, stds), rtol=1e-4, atol=1e-6)
        changed = seen.clone()
        changed[:, 6:] += 1.0
        torch.testing.assert_close(policy.whole(changed)[0][:, :6], means[:, :6], rtol=1e-4, atol=1e-6)
        assert not torch.allclose(policy.whole(changed)[0][:, 6:], means[:, 6:])


@pytest.mark.parametrize("course", [SIMPLE, HARD])
@pytest.mark.parametrize("tokens", [1, 7, STEPS])
def test_a_horizon_cuts_a_rollout_and_changes_nothing_before(course, tokens):
    policy = a_policy(TransformerPolicy if course.inertia else MlpPolicy)
    whole = course.sample(policy, 4, STEPS, generator())
    short = course.sample(policy, 4, tokens, generator())
    for part, of_whole in zip(vars(short).values(), vars(whole).values(), strict=True):
        assert part.shape[1] == tokens
        torch.testing.assert_close(part, of_whole[:, :tokens])


def test_inertia_adds_actions_to_the_velocity():
    course = Course(0.0, inertia=True, noise=0.0)
    taken = course.sample(a_policy(TransformerPolicy), 2, 10, generator())
    velocity = taken.actions.cumsum(1)
    torch.testing.assert_close(taken.positions, velocity.cumsum(1))
    torch.testing.assert_close(taken.observations[:, 1:, 1:3], velocity[:, :-1])


def test_success_is_to_end_at_the_target_without_touching_the_obstacle():
    steps = torch.linspace(1 / STEPS, 1, STEPS)[:, None]
    straight = steps * HARD.target
    around = straight + 5.0 * torch.sin(torch.pi * steps) * torch.tensor([-0.7071, 0.7071])
    short = 0.8 * around
    rollouts = torch.stack([straight, around, short])
    assert HARD.success(rollouts).tolist() == [False, True, False]
    assert Course(45.0).success(rollouts).tolist() == [True, True, False]
    with pytest.raises(AssertionError, match="full length"):
        HARD.success(rollouts[:, :10])


def test_a_margin_makes_the_obstacle_larger_and_none_appear():
    beside = HARD.target / 2 + torch.tensor([[[-1.6, 1.6]]])  # 2.26 from the middle of a disc of radius 2
    assert [bool(HARD.hits(beside, margin)) for margin in (0.0, 0.2, 0.3)] == [False, False, True]
    assert not Course(45.0).hits(Course(45.0).target[None, None] / 2, margin=0.3)


@pytest.mark.parametrize("angle", [30.0, 90.0])
def test_the_optimal_policy_arrives(angle):
    course = Course(angle, task=1.0)
    taken = course.sample(OptimalPolicy(course.target, DISTANCE), 256, STEPS, generator())
    assert course.success(taken.positions).float().mean() > 0.99


def test_reinforce_learns_the_course():
    policy, course = a_policy(MlpPolicy), Course(0.0)
    before = float(course.success(course.sample(policy, 256, STEPS, generator()).positions).float().mean())
    assert before < 0.1
    assert reinforce(policy, course, steps=2000, seed=0) >= 0.99


def test_a_student_that_equals_its_teacher_is_left_alone(tmp_path):
    policy = a_policy(MlpPolicy)
    before = copy.deepcopy(policy.state_dict())
    distil(policy, copy.deepcopy(policy), SIMPLE, Full(STEPS), 3, 0, tmp_path / "ledger.json")
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_a_student_learns_from_the_optimal_teacher(tmp_path):
    student = a_policy(MlpPolicy)
    teacher = OptimalPolicy(SIMPLE.target, DISTANCE)
    curve = distil(student, teacher, SIMPLE, Full(STEPS), 150, 0, tmp_path / "ledger.json", every=50)
    assert curve[0].success < 0.1
    assert curve[-1].success > 0.9


def test_costs_are_those_of_the_horizon(tmp_path):
    student, teacher = a_policy(MlpPolicy), a_policy(MlpPolicy, 1)
    horizons: dict[str, Controller] = {
        "topd": Truncated(STEPS, ratio=0.1),
        "popd": Progressive(STEPS, start=1, increment=1, every=2),
    }
    tokens, serial = {}, {}
    for name, controller in horizons.items():
        curve = distil(copy.deepcopy(student), teacher, SIMPLE, controller, 4, 0, tmp_path / name, rollouts=8, every=2)
        tokens[name] = [point.generated_tokens for point in curve]
        serial[name] = json.loads((tmp_path / name).read_text())["run"]["serial_tokens"]
    assert tokens == {"topd": [0, 80, 160], "popd": [0, 16, 48]}
    assert serial == {"topd": 20, "popd": 6}


def test_how_often_success_is_looked_at_changes_nothing(tmp_path):
    teacher, found = a_policy(MlpPolicy, 1), []
    for every in (1, 4):
        student = a_policy(MlpPolicy)
        distil(student, teacher, SIMPLE, Full(STEPS), 4, 0, tmp_path / f"{every}", rollouts=8, every=every)
        found.append(student.state_dict())
    torch.testing.assert_close(*found, rtol=0, atol=0)
