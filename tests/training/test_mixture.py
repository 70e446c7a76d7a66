"""Which rollouts are reference answers follows from the seed and their number; they end in the step they begin in."""

from math import ceil

import torch
from hypothesis import given
from hypothesis import strategies as st

from hopd.horizon import Decision
from hopd.processes import Processes
from hopd.rollout import FinishReason, Prompt, Rollout
from hopd.training.flight import Flight
from hopd.training.mixture import Mixture
from hopd.training.order import PromptOrder
from tests.training.flown import PER_STEP, Flown, T, described, extend, lasting, together

SHARES = st.sampled_from([0.01, 0.1, 0.25, 1 / 3, 0.3, 0.5, 0.75, 0.9, 0.999, 1.0])


@given(SHARES, st.integers(0, 2**64 - 1), st.integers(0, 10**6), st.integers(1, 300))
def test_any_stretch_of_rollouts_has_its_share_to_within_one_at_either_end(
    share: float, seed: int, first: int, count: int
) -> None:
    mixture = Mixture(share, seed)
    found = sum(mixture.is_reference(number) for number in range(first, first + count))
    assert abs(found - share * count) < 2
    assert found == count or share < 1


@given(SHARES, st.integers(0, 2**64 - 1), st.integers(0, 100))
def test_a_step_may_begin_anywhere(share: float, seed: int, cut: int) -> None:
    drawn = [Mixture(share, seed).is_reference(number) for number in range(200)]
    assert [Mixture(share, seed).is_reference(number) for number in range(cut, 200)] == drawn[cut:]


def test_every_place_of_a_group_is_drawn_about_equally_often_and_each_seed_draws_others() -> None:
    places = [sum(Mixture(0.25, 7).is_reference(4 * group + place) for group in range(4000)) for place in range(4)]
    assert sum(places) == 4000
    assert all(abs(count - 1000) < 5 * (4000 * 3 / 16) ** 0.5 for count in places)
    draws = [tuple(Mixture(0.25, seed).is_reference(number) for number in range(80)) for seed in range(20)]
    assert len(set(draws)) == 20


def mixed(processes: Processes, share: float, samples: int = 2, length: int = 25) -> Flight:
    answers = [torch.arange(length) + 100 * i for i in range(30)]
    prompts = [Prompt(1000 + i, torch.tensor([i]), reference=answer) for i, answer in enumerate(answers)]
    order = PromptOrder(prompts, PER_STEP // samples, 0, samples)
    return Flight(order, PER_STEP, T, 0, processes, Mixture(share, 3))


def fly(one: Flight, decisions: list[Decision], first: int = 0) -> list[Flown]:
    """Extends what is sampled, and takes reference answers as they are."""
    steps = []
    for step, decision in enumerate(decisions, first):
        (slots,) = one.deal(decision, step)
        asked = [slot.stretch(decision) for slot in slots if not slot.rollout.is_reference]
        extended = iter([extend(stretch, step) for stretch in asked])
        ended = one.land(slots, [s.rollout if s.rollout.is_reference else next(extended) for s in slots])
        steps.append(Flown(asked, ended))
        one.complete()
    return steps


def references(step: Flown) -> list[Rollout]:
    return [rollout for rollout in step.ended if rollout.is_reference]


def test_cut_at_the_horizon_or_whole_with_its_end() -> None:
    cut, whole = Decision(10, "cut"), Decision(30, "whole")
    for decision, length, finish in [(cut, 10, FinishReason.HORIZON), (whole, 25, FinishReason.STOP)]:
        (step,) = fly(mixed(Processes(), 0.25), [decision])
        assert len(step.ended) == PER_STEP
        assert len(step.asked) == PER_STEP - 3
        for one in references(step):
            assert one.prompt.reference is not None
            assert one.ids.tolist() == one.prompt.reference[:length].tolist()
            assert one.finish is finish
            assert one.log_probs.isnan().all()
        assert len(references(step)) == 3


def test_the_rollouts_that_are_sampled_are_those_of_a_run_without_references() -> None:
    decisions = [Decision(10, "cut", whole=2)] * 4
    alone = {r.prompt.id: r for step in fly(mixed(Processes(), 0.001), decisions) for r in step.ended}
    beside = [r for step in fly(mixed(Processes(), 0.5), decisions) for r in step.ended if not r.is_reference]
    assert len(beside) == 24
    assert {r.prompt.id for r in beside} <= alone.keys()


@given(st.sampled_from([0.25, 0.6, 1.0]), st.integers(2, 3))
def test_the_number_of_processes_changes_nothing(share: float, size: int) -> None:
    decisions = [Decision(10, "cut"), lasting(7, 15), Decision(20, "cut", rollouts=5, whole=2), lasting(9, 12)]
    one, many = (together(number, lambda p: fly(mixed(p, share), decisions)) for number in (1, size))
    joined = [
        Flown([s for flown in step for s in flown.asked], [r for flown in step for r in flown.ended])
        for step in zip(*many, strict=True)
    ]
    assert described(joined) == described(one[0])


def test_where_rollouts_continue_references_end_in_their_step_and_others_fill_their_slots() -> None:
    one = mixed(Processes(), 0.25)
    steps = fly(one, [lasting(12, 10)] * 12)
    assert all(len(step.asked) + len(references(step)) == 12 for step in steps)
    assert not any(slot.rollout.is_reference for slot in one.slots)
    later = [rollout for step in steps[3:] for rollout in references(step)]
    assert {(r.length, r.finish) for r in later} == {(25, FinishReason.STOP)}
    begun, drawn = one.started, [r for step in steps for r in references(step)]
    assert abs(len(drawn) - begun / 4) < 2
    assert ceil(begun / 4) > 3


def test_after_a_resume_the_draw_goes_on() -> None:
    decisions = [lasting(12, 10), Decision(10, "cut"), lasting(8, 10), Decision(15, "cut")]
    whole, first = mixed(Processes(), 0.5), mixed(Processes(), 0.5)
    expected = fly(whole, decisions)
    fly(first, decisions[:2])
    resumed = mixed(Processes(), 0.5)
    resumed.load_state(first.state_dict(), first.state())
    assert described(fly(resumed, decisions[2:], first=2)) == described(expected[2:])
