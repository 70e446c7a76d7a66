"""A decision spends a step: what its numbers mean, and which of them are impossible."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopd.errors import HorizonError
from hopd.horizon import Decision

T, PER_STEP = 100, 12


def decision(**options: Any) -> Decision:
    return Decision(options.pop("tokens", 10), "because", **options)


possible = st.builds(
    decision,
    tokens=st.integers(1, T),
    rollouts=st.none() | st.integers(1, 30),
    whole=st.none() | st.integers(0, 30),
    continues=st.booleans(),
    end=st.none() | st.integers(1, T),
)


@given(possible)
def test_a_steps_rollouts_are_cut_or_whole(one: Decision) -> None:
    one.check(0, T)
    cut, whole = one.parts(PER_STEP)
    assert cut + whole == (one.rollouts or PER_STEP)
    assert whole == (cut + whole if one.whole is None else min(one.whole, cut + whole))
    assert one.only_cuts == ((cut, one.rollouts) == (PER_STEP, None))
    assert one.longest(T) == (one.tokens if one.whole == 0 else one.end or T)
    each = one.tokens if one.continues else one.longest(T)
    assert one.at_most(PER_STEP, T) == cut * one.tokens + whole * each


@pytest.mark.parametrize(
    ("impossible", "sentence"),
    [
        ({"tokens": 0}, r"the horizon of step 3 is 0 tokens \(because\); a controller must decide on 1 to .* = 100"),
        ({"tokens": 101}, "is 101 tokens"),
        ({"rollouts": 0}, r"step 3 has 0 rollouts, 0 of them whole \(because\).*at least one rollout"),
        ({"whole": -1}, "step 3 has None rollouts, -1 of them whole.*no fewer than 0 whole ones"),
        ({"end": 0}, r"whole rollouts of step 3 end at 0 tokens \(because\).*1 to rollout\.full_tokens = 100"),
        ({"end": 101}, "end at 101 tokens"),
    ],
)
def test_an_impossible_spend_is_an_error_that_names_the_step_and_the_reason(
    impossible: dict[str, int], sentence: str
) -> None:
    with pytest.raises(HorizonError, match=sentence):
        decision(**impossible).check(3, T)
