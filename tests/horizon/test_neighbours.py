"""The neighbours' rules: bounded, slow, exactly resumed, and each on the story that it is made for."""

import json
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hopd.errors import RecipeError
from hopd.horizon import Block, BuiltIn, Evidence, Plateau, Prune, RandomHorizon, Settled, build, describe

FULL = 1000
ROLLOUTS = 10

SPECS: list[dict[str, Any]] = [
    {"controller": "prune"},
    {"controller": "prune", "whole": 2},
    {"controller": "plateau", "start": 100, "increment": 150, "patience": 2},
    {"controller": "settled", "warmup": 3},
]
SLOWEST = {"prune": 8, "plateau": 150, "settled": 100}  # tokens by which a horizon moves at most
LEAST = {"prune": 83, "plateau": 100, "settled": 100}
specs = st.sampled_from(SPECS)


def evidence(step: int, horizon: int, divergences: Sequence[float], stopped: Sequence[int] = ()) -> Evidence:
    """What 10 rollouts show that are cut at the horizon, if as many of them stop in each tenth by themselves."""
    blocks, left = [], ROLLOUTS
    for place, divergence in enumerate(divergences):
        start, end = place * FULL // 10, (place + 1) * FULL // 10
        reached = left if start < horizon else 0
        ended = min(reached, stopped[place] if place < len(stopped) else 0)
        tokens = reached * (min(end, horizon) - start)
        blocks.append(Block(start, end, reached, ended, tokens, divergence if tokens else 0.0))
        left -= ended
    ended = sum(block.stopped for block in blocks)
    return Evidence(step, horizon, ROLLOUTS, ended, 1.0, (), (), (), tuple(blocks))


def run(controller: Any, steps: int, divergences: Callable[[int], Sequence[float]], first: int = 0) -> list[int]:
    """The horizons of a run in which the tenths have these divergences."""
    horizons = []
    for step in range(first, first + steps):
        horizons.append(controller.decide(step).tokens)
        controller.observe(evidence(step, horizons[-1], divergences(step)))
    return horizons


tenths = st.lists(st.floats(-0.1, 3), min_size=10, max_size=10)
ends = st.lists(st.integers(0, ROLLOUTS), min_size=10, max_size=10)
stories = st.lists(st.tuples(tenths, ends), max_size=40)


@settings(max_examples=60)
@given(specs, stories)
def test_a_horizon_moves_slowly_between_its_floor_and_the_full_length_and_says_why(
    spec: dict[str, Any], story: list[tuple[list[float], list[int]]]
) -> None:
    controller, name = build(spec, FULL), spec["controller"]
    before = controller.decide(0)
    for step, (divergences, stopped) in enumerate(story):
        controller.observe(evidence(step, before.tokens, divergences, stopped))
        now = controller.decide(step + 1)
        assert LEAST[name] <= now.tokens <= FULL
        assert abs(now.tokens - before.tokens) <= SLOWEST[name]
        assert now.reason.startswith(f"{name}: {now.tokens} of 1000 tokens")
        if now.tokens != before.tokens:
            assert ("grew" if now.tokens > before.tokens else "shrank") in now.reason
        assert (now.whole, now.rollouts, now.continues) == (spec.get("whole", 0), None, False)
        before = now


@settings(max_examples=60)
@given(specs, stories, st.integers(0, 40))
def test_a_rule_saved_at_any_step_decides_on_as_the_one_that_went_on(
    spec: dict[str, Any], story: list[tuple[list[float], list[int]]], saved: int
) -> None:
    controller, resumed = build(spec, FULL), None
    for step, (divergences, stopped) in enumerate(story):
        if step == min(saved, len(story) - 1):
            resumed = build(spec, FULL)
            resumed.load_state_dict(json.loads(json.dumps(controller.state_dict())))
        decision = controller.decide(step)
        seen = evidence(step, decision.tokens, divergences, stopped)
        controller.observe(seen)
        if resumed is not None:
            assert resumed.decide(step) == decision
            resumed.observe(seen)
            assert resumed.state_dict() == json.loads(json.dumps(controller.state_dict()))


def test_a_saved_state_stays_as_it_was_while_the_rule_goes_on() -> None:
    for spec in SPECS:
        controller = build(spec, FULL)
        run(controller, 10, lambda step: [1 / (step + 1)] * 10)
        state = controller.state_dict()
        kept = json.dumps(state)
        run(controller, 10, lambda step: [2.0 - step / 20] * 10, first=10)
        assert json.dumps(state) == kept


@pytest.mark.parametrize("spec", SPECS)
def test_without_tenths_in_the_evidence_the_horizon_stays(spec: dict[str, Any]) -> None:
    controller = build(spec, FULL)
    before = controller.decide(0)
    for step in range(60):
        controller.observe(Evidence(step, before.tokens, 4, 4, 1.0, (0, 1), (9.0,), (4,)))
    assert controller.decide(60) == before


@pytest.mark.parametrize(
    "spec", [*SPECS, {"controller": "random", "ratio": 0.1}, {"controller": "random", "tokens": 30, "seed": 4}]
)
def test_a_rule_is_described_by_its_options_whatever_it_has_seen(spec: dict[str, Any]) -> None:
    controller: BuiltIn = build(spec, FULL)  # type: ignore[assignment]
    run(controller, 20, lambda step: [0.01] * 10)
    described = describe(controller)
    assert spec.items() <= described.items()
    assert build(described, FULL) == build(spec, FULL) == controller


@pytest.mark.parametrize("full_tokens", [1, 2, 7, 11, 360])
def test_the_shortest_answers_have_a_horizon_too(full_tokens: int) -> None:
    assert 1 <= Prune(full_tokens).decide(0).tokens <= full_tokens
    settled = Settled(full_tokens)
    assert settled.decide(0).tokens == full_tokens
    settled.load_state_dict({"kept": 1})
    assert 1 <= settled.decide(0).tokens <= full_tokens


def test_random_has_the_mean_of_truncated_whatever_the_range() -> None:
    for tokens in (1, 2, 100, 500, 501, 900, 1000):
        drawn = [RandomHorizon(FULL, tokens=tokens).decide(step).tokens for step in range(4000)]
        spread = min(tokens - 1, FULL - tokens)
        assert min(drawn) >= max(1, tokens - spread)
        assert max(drawn) <= min(FULL, tokens + spread)
        assert abs(mean(drawn) - tokens) <= 0.04 * spread  # four standard errors of a uniform draw
        if spread > 10:
            assert min(drawn) < tokens - 0.95 * spread
            assert max(drawn) > tokens + 0.95 * spread


def test_random_is_a_function_of_seed_and_step() -> None:
    one, same, other = (RandomHorizon(FULL, ratio=0.3, seed=seed) for seed in (1, 1, 2))
    assert [one.decide(step) for step in range(9)] == [same.decide(step) for step in reversed(range(9))][::-1]
    assert [one.decide(step) for step in range(9)] != [other.decide(step) for step in range(9)]
    assert [RandomHorizon(100, tokens=10).decide(step).tokens for step in range(6)] == [7, 3, 4, 15, 13, 9]


def test_random_keeps_the_options_of_a_schedule() -> None:
    decision = RandomHorizon(FULL, ratio=0.1, whole=2, rollouts=7).decide(3)
    assert (decision.whole, decision.rollouts) == (2, 7)
    assert RandomHorizon(FULL, ratio=0.1, continues=True).decide(3).whole is None


def test_prune_grows_where_all_agree_to_the_full_length_and_shrinks_at_a_third_of_the_speed() -> None:
    controller = Prune(FULL)
    grown = run(controller, 130, lambda step: [0.1] * 10)
    assert grown[:4] == [83, 91, 99, 107]
    assert grown[-1] == FULL
    shrunk = run(controller, 20, lambda step: [0.1, 0.1, 0.5] + [0.1] * 7)
    assert shrunk[:8] == [1000, 1000, 1000, 995, 995, 995, 987, 987]


def test_prune_waits_where_the_teacher_begins_to_disagree() -> None:
    reached = run(Prune(FULL), 300, lambda step: [0.1] * 4 + [0.5] + [0.1] * 5)[-30:]
    assert max(reached) <= 400 + 3 * 8  # the allowance of 8 tokens, and a step of 8 before and after
    assert min(reached) >= 400


def test_prune_stays_at_its_floor_while_the_teacher_disagrees_from_the_start_and_leaves_it_at_once() -> None:
    controller = Prune(FULL)
    assert set(run(controller, 50, lambda step: [2.0] * 10)) == {83}
    assert run(controller, 3, lambda step: [0.1] * 10, first=50) == [83, 91, 99]


def test_prune_does_not_grow_beyond_what_a_tenth_of_the_rollouts_reach() -> None:
    controller = Prune(FULL)
    for step in range(100):
        tokens = controller.decide(step).tokens
        controller.observe(evidence(step, tokens, [0.1] * 10, [0, 0, 10]))
    assert 200 < tokens <= 216


def test_plateau_grows_when_its_band_has_had_no_new_minimum_and_never_before() -> None:
    controller = Plateau(FULL, start=200, increment=100, patience=3)
    assert set(run(controller, 30, lambda step: [1 / (step + 1)] * 10)) == {200}  # still falling
    assert run(controller, 60, lambda step: [0.04] * 10, first=30)[-1] > 200
    assert "so it grew" in controller.decide(90).reason


def test_plateau_looks_at_its_band_alone() -> None:
    def band_falls(step: int) -> list[float]:
        return [3.0, 1 / (step + 1)] + [0.5] * 8

    assert set(run(Plateau(FULL, 200, 100, patience=3), 40, band_falls)) == {200}
    assert run(Plateau(FULL, 200, 200, patience=3), 40, band_falls)[-1] > 200


def test_plateau_survives_a_band_that_was_all_but_learnt_when_its_horizon_was_entered() -> None:
    controller = Plateau(FULL, start=200, increment=100, patience=50)
    run(controller, 1, lambda step: [5e-324] * 10)
    run(controller, 20, lambda step: [3.0] * 10, first=1)
    assert json.dumps(controller.state_dict(), allow_nan=False)
    assert run(controller, 60, lambda step: [0.1] * 10, first=21)[-1] > 200


def test_plateau_stays_while_too_few_rollouts_reach_its_horizon() -> None:
    controller = Plateau(FULL, start=200, increment=100, patience=2)
    for step in range(30):
        controller.observe(evidence(step, 200, [0.1] * 10, [5, 5]))
    assert controller.decide(30).tokens == 200
    controller.observe(evidence(30, 200, [0.1] * 10, [5, 4]))
    assert controller.decide(31).tokens == 300


def test_settled_is_full_in_its_warmup_and_then_ends_where_the_divergence_has_settled() -> None:
    controller = Settled(FULL, warmup=20)
    horizons = run(controller, 80, lambda step: [1.0, 0.5, 0.1 - step / 2000] + [0.3] * 7)
    assert set(horizons[:21]) == {FULL}
    assert horizons[24] == 900  # four steps say so
    assert horizons[-1] == 300


def test_settled_grows_again_when_nothing_is_settled() -> None:
    controller = Settled(FULL, warmup=0)
    assert run(controller, 60, lambda step: [1.0, 0.1 - step / 2000] + [0.3] * 8)[-1] == 200
    assert run(controller, 9, lambda step: [1.0] * 10, first=60)[-1] == 400


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"controller": "random"}, r"needs either ratio or tokens"),
        ({"controller": "random", "ratio": 0.1, "seed": -1}, "horizon seed must be at least 0, got -1"),
        ({"controller": "plateau", "start": 0, "increment": 1}, "horizon start must be at least 1, got 0"),
        ({"controller": "plateau", "start": 5}, "horizon 'plateau' needs increment"),
        ({"controller": "plateau", "start": 1001, "increment": 1}, "start must be at most the full length 1000"),
        ({"controller": "settled", "warmup": 0.5}, r"horizon warmup must be a whole number, got 0\.5"),
        ({"controller": "prune", "continue": True}, "'prune' has no option 'continue"),
        ({"controller": "prune", "memory": 1}, "'prune' has no option 'memory'"),
    ],
)
def test_a_mistake_in_an_option_is_named(spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        build(spec, FULL)
