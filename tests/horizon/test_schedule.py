import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopd.errors import RecipeError
from hopd.horizon import Controller, Decision, Evidence, Full, Progressive, Staged, Truncated

steps = st.integers(0, 100_000)
lengths = st.integers(1, 40_000)


@st.composite
def progressives(draw: st.DrawFn) -> Progressive:
    full = draw(lengths)
    return Progressive(full, draw(st.integers(1, full)), draw(st.integers(1, 2000)), draw(st.integers(1, 500)))


@st.composite
def truncated_by_ratio(draw: st.DrawFn) -> Truncated:
    return Truncated(draw(lengths), ratio=draw(st.floats(0, 1, exclude_min=True)))


@st.composite
def truncated_by_tokens(draw: st.DrawFn) -> Truncated:
    full = draw(lengths)
    return Truncated(full, tokens=draw(st.integers(1, full)))


@st.composite
def staged(draw: st.DrawFn) -> Staged:
    full = draw(lengths)
    tokens = st.integers(1, full)
    return Staged(full, {0: draw(tokens)} | draw(st.dictionaries(st.integers(0, 1000), tokens, max_size=6)))


controllers = st.one_of(st.builds(Full, lengths), truncated_by_ratio(), truncated_by_tokens(), progressives(), staged())


def evidence(step: int, horizon: int) -> Evidence:
    return Evidence(step, horizon, 4, 4, 1.0, (0, 1), (9.0,), (4,))


@given(controllers, steps)
def test_every_decision_is_from_one_token_to_the_full_length(controller: Controller, step: int) -> None:
    tokens = controller.decide(step).tokens
    assert isinstance(tokens, int)
    assert 1 <= tokens <= controller.full_tokens


@given(controllers, steps)
def test_every_reason_names_the_tokens_that_were_decided(controller: Controller, step: int) -> None:
    decision = controller.decide(step)
    assert str(decision.tokens) in decision.reason.replace(",", " ").split()


@given(progressives(), steps)
def test_progressive_is_equation_11(controller: Progressive, step: int) -> None:
    start, increment, every = controller.start, controller.increment, controller.every
    assert controller.decide(step).tokens == min(controller.full_tokens, start + increment * (step // every))


@given(progressives(), steps, steps)
def test_progressive_never_shrinks(controller: Progressive, one: int, other: int) -> None:
    early, late = sorted([one, other])
    assert controller.decide(early).tokens <= controller.decide(late).tokens


def test_progressive_with_every_2_grows_at_every_other_step_and_stops_at_the_full_length() -> None:
    controller = Progressive(10, start=4, increment=3, every=2)
    assert [controller.decide(step).tokens for step in range(7)] == [4, 4, 7, 7, 10, 10, 10]


def test_progressive_says_when_it_has_become_full() -> None:
    controller = Progressive(10, start=4, increment=6)
    assert controller.decide(0).reason == "progressive: 4 + 6 · ⌊0 / 1⌋ = 4 tokens"
    assert controller.decide(1).reason == "progressive: grown to the full 10 tokens"


@pytest.mark.parametrize(
    ("ratio", "full", "tokens"),
    [(0.5, 15360, 7680), (0.25, 15360, 3840), (0.1, 15360, 1536), (0.025, 15360, 384), (0.1, 360, 36), (1.0, 7, 7)],
)
def test_truncated_keeps_its_ratio_of_the_full_length(ratio: float, full: int, tokens: int) -> None:
    assert Truncated(full, ratio=ratio).decide(0).tokens == tokens


@given(truncated_by_ratio(), steps)
def test_truncated_rounds_to_the_nearest_token_and_never_to_none(controller: Truncated, step: int) -> None:
    assert controller.ratio is not None
    exact = controller.ratio * controller.full_tokens
    tokens = controller.decide(step).tokens
    assert tokens == 1 if exact < 1 else abs(tokens - exact) <= 0.5


@given(truncated_by_tokens(), steps)
def test_truncated_to_a_number_of_tokens_is_that_number(controller: Truncated, step: int) -> None:
    assert controller.decide(step).tokens == controller.tokens


def test_a_stage_lasts_until_the_next_one_begins_whatever_their_order_in_the_mapping() -> None:
    controller = Staged(100, {5: 20, 0: 10, 7: 15})
    assert [controller.decide(step).tokens for step in (0, 4, 5, 6, 7, 1000)] == [10, 10, 20, 20, 15, 15]


def test_full_is_the_full_length_at_every_step() -> None:
    assert {Full(100).decide(step).tokens for step in range(50)} == {100}


@given(controllers, st.lists(steps, min_size=1, max_size=5))
def test_decisions_of_a_schedule_do_not_depend_on_earlier_calls(controller: Controller, asked: list[int]) -> None:
    before: list[Decision] = [controller.decide(step) for step in asked]
    for step, decision in zip(asked, before, strict=True):
        controller.observe(evidence(step, decision.tokens))
    assert [controller.decide(step) for step in reversed(asked)] == before[::-1]


@given(controllers, steps)
def test_a_controller_that_loads_a_saved_state_decides_like_the_one_that_saved_it(
    controller: Controller, step: int
) -> None:
    controller.observe(evidence(step, controller.decide(step).tokens))
    state = controller.state_dict()
    controller.load_state_dict(json.loads(json.dumps(state)))
    assert controller.state_dict() == state
    fresh = type(controller)(**vars(controller))
    fresh.load_state_dict(json.loads(json.dumps(state)))
    assert fresh.decide(step + 1) == controller.decide(step + 1)


@pytest.mark.parametrize(
    ("options", "spent", "reason"),
    [
        ({}, (None, 0, False), "truncated: 30 of 100 tokens"),
        ({"rollouts": 5}, (5, 0, False), "truncated: 30 of 100 tokens"),
        ({"whole": 2}, (None, 2, False), "truncated: 30 of 100 tokens, 2 rollouts whole"),
        ({"continues": True}, (None, None, True), "truncated: 30 of 100 tokens, continued"),
        (
            {"continues": True, "whole": 2, "rollouts": 5},
            (5, 2, True),
            "truncated: 30 of 100 tokens, continued, 2 rollouts whole",
        ),
    ],
)
def test_every_schedule_says_how_many_rollouts_there_are_and_whether_they_continue(
    options: dict[str, Any], spent: tuple[Any, ...], reason: str
) -> None:
    decision = Truncated(100, tokens=30, **options).decide(0)
    assert (decision.rollouts, decision.whole, decision.continues) == spent
    assert (decision.tokens, decision.end, decision.reason) == (30, None, reason)
    for other in (Full(100, **options), Progressive(100, 5, 1, **options), Staged(100, {0: 9}, **options)):
        decision = other.decide(0)
        assert (decision.rollouts, decision.whole, decision.continues) == spent


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rollouts": 0}, "horizon rollouts must be at least 1, got 0"),
        ({"rollouts": 2.5}, "horizon rollouts must be a whole number, got 2.5"),
        ({"whole": 0}, "horizon whole must be at least 1, got 0"),
        ({"whole": True}, "horizon whole must be a whole number, got True"),
        ({"rollouts": 3, "whole": 4}, "horizon whole must be at most rollouts = 3, got 4"),
        ({"continues": "yes"}, "horizon continue must be true or false, got 'yes'"),
        ({"continues": 1}, "horizon continue must be true or false, got 1"),
    ],
)
def test_every_schedule_names_the_number_that_makes_no_step(options: dict[str, Any], sentence: str) -> None:
    for make in (lambda: Full(100, **options), lambda: Staged(100, {0: 9}, **options)):
        with pytest.raises(RecipeError) as error:
            make()
        assert str(error.value) == sentence


@pytest.mark.parametrize("ratio", [10, 1.5, 512])
def test_a_ratio_above_one_is_an_error_that_offers_tokens(ratio: float) -> None:
    with pytest.raises(RecipeError, match=rf"ratio must be in \(0, 1\], got {ratio} \(did you mean tokens: {ratio}\?"):
        Truncated(1000, ratio=ratio)


@pytest.mark.parametrize("ratio", [0.0, -0.1, float("nan"), float("inf")])
def test_a_ratio_out_of_range_is_an_error_that_names_the_range(ratio: float) -> None:
    with pytest.raises(RecipeError, match=r"ratio must be in \(0, 1\]"):
        Truncated(1000, ratio=ratio)


@pytest.mark.parametrize("options", [{}, {"ratio": 0.1, "tokens": 100}])
def test_truncated_takes_exactly_one_of_ratio_and_tokens(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"either ratio or tokens: write ratio: 0\.1, or tokens: 512"):
        Truncated(1000, **options)


def test_more_tokens_than_the_full_length_is_an_error_that_says_what_to_raise_or_write() -> None:
    with pytest.raises(RecipeError, match=r"at most the full length 100, got 101; raise rollout\.full_tokens or wri"):
        Truncated(100, tokens=101)


def test_a_start_above_the_full_length_is_an_error_that_names_both() -> None:
    with pytest.raises(RecipeError, match="start must be at most the full length 100, got 101"):
        Progressive(100, start=101, increment=1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"start": 0, "increment": 1}, "horizon start must be at least 1, got 0"),
        ({"start": 1, "increment": 0}, "horizon increment must be at least 1, got 0"),
        ({"start": 1, "increment": 1, "every": 0}, "horizon every must be at least 1, got 0"),
        ({"start": 1.5, "increment": 1}, "horizon start must be a whole number, got 1.5"),
        ({"start": 1, "increment": "9"}, "horizon increment must be a whole number, got '9'"),
        ({"start": True, "increment": 1}, "horizon start must be a whole number, got True"),
    ],
)
def test_progressive_names_the_number_that_is_wrong(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        Progressive(100, **options)
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ({}, r"must begin at step 0: write stages: \{0: 512, 100: 1024\}"),
        ({1: 10}, r"must begin at step 0: write stages: \{0: 512, 100: 1024\}"),
        ({0: 10, 5: 101}, "the stage from step 5 has 101 tokens, more than the full length 100"),
        ({0: 0}, "the tokens of a horizon stage must be at least 1, got 0"),
        ({0: 10, -1: 5}, "the step of a horizon stage must be at least 0, got -1"),
        ({0: 10, 2.5: 5}, r"the step of a horizon stage must be a whole number, got 2\.5"),
    ],
)
def test_stages_that_make_no_schedule_are_an_error(stages: dict[int, int], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        Staged(100, stages)


@pytest.mark.parametrize("full_tokens", [0, -1, 2.5, True])
def test_a_full_length_must_be_a_whole_number_of_at_least_one(full_tokens: int) -> None:
    with pytest.raises(RecipeError, match="full_tokens must be"):
        Full(full_tokens)
