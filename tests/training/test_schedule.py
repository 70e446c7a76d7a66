"""The learning rate as a function of the step: warm-up, a constant part, a decay in which every step still trains."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hopd.recipe import TrainingSection
from hopd.training.optimizer import MasterOptimizer

SHAPES = st.tuples(
    st.integers(1, 300), st.integers(0, 20), st.floats(0.001, 1) | st.sampled_from([0.1, 0.2, 0.5, 1.0])
)  # steps, warm-up steps, decay


def factors(total: int, warmup: int, schedule: str, **settings: Any) -> list[float]:
    settings |= {"schedule": schedule, "warmup_steps": warmup}
    section = TrainingSection(steps=total, learning_rate=1.0, **settings)
    optimizer = MasterOptimizer(nn.Linear(1, 1), section, total)
    return [optimizer.learning_rate(step) for step in range(total)]


@given(SHAPES)
def test_wsd_warms_up_stays_and_decays(shape: tuple[int, int, float]) -> None:
    total, warmup, decay = shape
    rates = factors(total, warmup, "wsd", decay=decay)
    assert all(0 < rate <= 1 for rate in rates)
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    after = rates[warmup:]
    assert all(a >= b for a, b in pairwise(after))
    constant = [rate for step, rate in enumerate(rates) if step >= warmup and total - step >= decay * total]
    assert all(rate == 1 for rate in constant)
    decaying = after[len(constant) :]
    assert all(a > b for a, b in pairwise(decaying))
    assert after[:1] in ([], [1.0])


@given(SHAPES)
def test_the_decay_is_a_line_to_zero_at_the_step_after_the_last(shape: tuple[int, int, float]) -> None:
    total, warmup, decay = shape
    after = [*factors(total, warmup, "wsd", decay=decay)[warmup:], 0.0]
    falls = [a - b for a, b in pairwise(after) if a < 1]
    assert falls == pytest.approx(falls[-1:] * len(falls))


@given(SHAPES)
def test_a_decay_over_all_steps_is_the_linear_schedule(shape: tuple[int, int, float]) -> None:
    total, warmup, _ = shape
    assert factors(total, warmup, "wsd", decay=1.0) == pytest.approx(factors(total, warmup, "linear"))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_the_last_step_trains(schedule: str) -> None:
    assert factors(10, 2, schedule)[-1] > 0
