"""The adaptive controller on made-up evidence: its bounds, its pace, its memory, and what moves it."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopd.errors import RecipeError
from hopd.horizon import Adaptive, Block, Evidence, Gradients
from hopd.horizon.adaptive import CHANGE, LEAST, PATIENCE, STRIDES

T = 400
positive = st.floats(1e-6, 1e6)


def evidence(
    step: int,
    signal: list[float],
    noise: float,
    kl: list[float] | None = None,
    surplus: list[float] | None = None,
    aligned: float = 1.0,
) -> Evidence:
    """Makes evidence of a step: `signal` is the squared norm of each tenth's gradient, `aligned` the cosine of the last
    five tenths with the others, in which all agree."""
    late = [tenth >= STRIDES // 2 for tenth in range(STRIDES)]
    products = tuple(
        tuple((a * b) ** 0.5 * (aligned if late[i] != late[j] else 1.0) for j, b in enumerate(signal))
        for i, a in enumerate(signal)
    )
    kl, surplus = kl or [0.5] * STRIDES, surplus or [-0.1] * STRIDES
    blocks = tuple(
        Block(tenth * T // STRIDES, (tenth + 1) * T // STRIDES, 4, 0, 160, kl[tenth], surplus[tenth])
        for tenth in range(STRIDES)
    )
    pairs = ((12.0,) * STRIDES,) * STRIDES
    gradients = Gradients(products, (noise / STRIDES,) * STRIDES, pairs)
    return Evidence(step, T // STRIDES, 4, 4, float(T), (), (), (), blocks, gradients)


def endings(controller: Adaptive, step: int) -> float:
    """Returns how many rollouts end in a step, about."""
    decision = controller.decide(step)
    assert decision.rollouts is not None
    return decision.rollouts * decision.tokens / T


def run(controller: Adaptive, steps: int, **shown: Any) -> None:
    for step in range(steps):
        controller.decide(step).check(step, T)
        controller.observe(evidence(step, **shown))


def test_it_begins_with_a_few_rollouts_that_continue_by_a_tenth() -> None:
    decision = Adaptive(T, per_step=32).decide(0)
    assert (decision.tokens, decision.rollouts, decision.whole, decision.continues) == (40, 30, None, True)
    assert Adaptive(T, per_step=2).decide(0).rollouts == 20  # never more than the recipe's rollouts end in a step


@given(st.lists(st.tuples(st.lists(positive, min_size=10, max_size=10), positive), max_size=60), st.integers(1, 64))
def test_it_stays_within_its_bounds_and_changes_slowly(shown: list[tuple[list[float], float]], per_step: int) -> None:
    controller = Adaptive(T, per_step)
    before = controller.ending
    for step, (signal, noise) in enumerate(shown):
        decision = controller.decide(step)
        decision.check(step, T)
        assert decision.tokens == T // STRIDES
        assert decision.at_most(per_step, T) <= per_step * T + decision.tokens
        controller.observe(evidence(step, signal, noise))
        assert min(LEAST, per_step) <= controller.ending <= per_step
        assert before / CHANGE - 1e-9 <= controller.ending <= before * CHANGE + 1e-9
        before = controller.ending


@pytest.mark.parametrize(("noise", "wanted"), [(1.0, LEAST), (12.0, 12), (1000.0, 32)])
def test_the_number_of_rollouts_follows_noise_over_signal(noise: float, wanted: float) -> None:
    controller = Adaptive(T, per_step=32)
    run(controller, 120, signal=[0.01] * STRIDES, noise=noise)  # all tenths aligned: |G|² = (10 · 0.1)² = 1
    assert endings(controller, 120) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("width", [2.5, 90.0, 1e4])
def test_the_width_of_a_machine_decides_between_tokens_and_steps(width: float) -> None:
    """The seconds of the same progress are least at the number that it settles on."""
    controller = Adaptive(T, per_step=200, width=width)
    run(controller, 300, signal=[0.01] * STRIDES, noise=40.0)
    ending = endings(controller, 300)

    def seconds(b: float) -> float:
        return (1 + 40 / b) * (width + STRIDES * b)

    assert all(seconds(ending) <= 1.001 * seconds(other) for other in range(LEAST, 200))


@pytest.mark.parametrize("width", [0, -1.0, float("inf"), float("nan")])
def test_a_width_is_a_positive_number(width: float) -> None:
    with pytest.raises(RecipeError, match="width must be a positive number"):
        Adaptive(T, per_step=4, width=width)


def test_rollouts_that_end_sooner_need_fewer_slots() -> None:
    controller = Adaptive(T, per_step=32)
    for step in range(200):
        found = evidence(step, [0.01] * STRIDES, 1.0)
        controller.observe(Evidence(**{**vars(found), "mean_length": 100.0}))
    assert controller.decide(200).rollouts == pytest.approx(LEAST * 100 / 40, abs=1)


def test_without_gradients_it_keeps_its_number() -> None:
    controller = Adaptive(T, per_step=32)
    for step in range(50):
        controller.observe(Evidence(**{**vars(evidence(step, [1.0] * STRIDES, 9.0)), "gradients": None}))
    assert endings(controller, 50) == LEAST


def test_rollouts_end_where_the_teacher_is_less_certain_and_pulls_elsewhere() -> None:
    lost = [-0.1] * 5 + [0.4] * 5
    controller = Adaptive(T, per_step=32)
    run(controller, 30, signal=[0.01] * STRIDES, noise=1.0, surplus=lost, aligned=0.0)
    assert controller.end == T // 2
    assert "less certain" in controller.why or "noise" in controller.why
    for kept in ({"surplus": lost, "aligned": 0.9}, {"surplus": None, "aligned": 0.0}):  # one of the two is not enough
        other = Adaptive(T, per_step=32)
        run(other, 30, signal=[0.01] * STRIDES, noise=1.0, **kept)
        assert other.end == T


def test_a_block_is_tried_again_when_the_divergence_has_halved() -> None:
    controller = Adaptive(T, per_step=32)
    lost = [-0.1] * 5 + [0.4] * 5
    run(controller, 20, signal=[0.01] * STRIDES, noise=1.0, surplus=lost, aligned=0.0)
    assert controller.end == T // 2
    for step in range(20, 80):
        controller.observe(evidence(step, [0.01] * STRIDES, 1.0, kl=[0.05] * STRIDES))
    assert controller.end > T // 2


def test_each_change_has_a_reason_and_they_are_not_more_frequent_than_its_patience() -> None:
    controller = Adaptive(T, per_step=32)
    changes, last = [], controller.decide(0)
    for step in range(100):
        controller.observe(evidence(step, [0.01] * STRIDES, 100.0 * (step + 1)))
        now = controller.decide(step + 1)
        if now.rollouts != last.rollouts:
            changes.append(step)
            assert now.reason != last.reason
        last = now
    assert changes
    assert all(b - a >= PATIENCE for a, b in pairwise(changes))


@given(st.lists(st.tuples(positive, positive, st.floats(-1, 1)), min_size=1, max_size=40), st.integers(0, 39))
def test_a_controller_that_was_saved_and_loaded_decides_the_same(
    shown: list[tuple[float, float, float]], cut: int
) -> None:
    whole, first, second = Adaptive(T, 16), Adaptive(T, 16), Adaptive(T, 16)
    for step, (signal, noise, surplus) in enumerate(shown):
        if step == min(cut, len(shown) - 1):
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
            first = second
        found = evidence(step, [signal] * STRIDES, noise, surplus=[surplus] * STRIDES, aligned=0.0)
        for controller in (whole, first):
            controller.observe(found)
        assert whole.decide(step + 1) == first.decide(step + 1)


def test_a_full_length_of_fewer_than_ten_tokens_is_an_error() -> None:
    with pytest.raises(RecipeError, match="full_tokens of at least 10, got 9"):
        Adaptive(9, per_step=4)
