"""Rollouts in flight: each is started once, extended in every step, and ends once, on any number of processes."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hopd.errors import HorizonError
from hopd.horizon import Decision
from hopd.processes import Processes
from hopd.rollout import FinishReason, fold
from hopd.training.flight import Slot
from tests.training.flown import (
    PER_STEP,
    Flown,
    T,
    described,
    extend,
    flight,
    fly,
    joined,
    key,
    lasting,
    named,
    never_stops,
    together,
)

decisions = st.builds(
    Decision,
    tokens=st.integers(1, T),
    reason=st.just("drawn"),
    rollouts=st.none() | st.integers(1, 2 * PER_STEP),
    whole=st.none() | st.integers(0, 2 * PER_STEP),
    continues=st.booleans(),
    end=st.none() | st.integers(1, T),
)
runs = st.lists(decisions, min_size=1, max_size=8)
seeds = st.integers(0, 2**64 - 1)
sizes = st.integers(1, 3)


@settings(max_examples=25)
@given(runs, seeds, st.sampled_from([1, 2, 3]))
def test_a_step_has_its_number_of_rollouts_unless_more_are_in_flight(
    run: list[Decision], seed: int, samples: int
) -> None:
    one = flight(Processes(), seed, samples)
    for step, decision in enumerate(run):
        flying, started = len(one.slots), one.started
        ((asked, _),) = fly(one, [decision], step)
        assert one.started - started == sum(s.rollout.length == 0 for s in asked) == len(asked) - flying
        count = decision.rollouts or PER_STEP
        whole = count if decision.whole is None else min(decision.whole, count)
        assert len(asked) == max(count, flying)
        short = [s for s in asked if s.rollout.length == 0 and s.limit == decision.tokens and not s.keep]
        assert len(short) >= count - max(whole, flying)
        assert all(s.limit - s.rollout.length <= decision.tokens for s in asked if decision.continues)


@settings(max_examples=25)
@given(runs, seeds, sizes)
def test_every_rollout_that_starts_ends_once_and_what_steps_add_is_its_length(
    run: list[Decision], seed: int, size: int
) -> None:
    last = Decision(T, "the rest", rollouts=1, whole=None)
    steps = joined(together(size, lambda processes: fly(flight(processes, seed), [*run, last])))
    started = Counter(key(s.rollout) for step in steps for s in step.asked if s.rollout.length == 0)
    ended = Counter(key(r) for step in steps for r in step.ended)
    assert started == ended
    assert set(started.values()) == {1}
    for number, step in enumerate(steps):
        assert all(
            len(set(map(key, rollouts))) == len(rollouts) for rollouts in (step.ended, [s.rollout for s in step.asked])
        )
        for rollout in step.ended:
            assert rollout.ids.tolist() == sorted(rollout.ids.tolist())
            assert (number - rollout.ids).tolist() == rollout.age_of_tokens.tolist()
            assert (-rollout.log_probs).tolist() == rollout.ids.tolist()
    gained = Counter(i for step in steps for rollout in step.ended for i in rollout.ids.tolist())
    for number, step in enumerate(steps):
        assert gained[number] == sum(extend(s, 0).length - s.rollout.length for s in step.asked)


@settings(max_examples=25)
@given(runs, seeds)
def test_a_whole_rollout_is_cut_at_its_end_only(run: list[Decision], seed: int) -> None:
    """Nothing that was cut could have gone on: it has the end of the step in which it began, or opened a slot."""
    one, ends = flight(Processes(), seed), dict[tuple[int, int, int], int]()
    for step, decision in enumerate(run):
        (slots,) = one.deal(decision, step)
        ends |= {key(slot.rollout): slot.end for slot in slots if slot.rollout.length == 0}
        assert all(ends[key(slot.rollout)] == slot.end for slot in slots)
        asked = [slot.stretch(decision) for slot in slots]
        for rollout in one.land(slots, [extend(stretch, step) for stretch in asked]):
            assert rollout.finish is not FinishReason.HORIZON or rollout.length == ends[key(rollout)]
        one.complete()


@pytest.mark.parametrize(("rollouts", "tokens"), [(4, 10), (8, 10), (5, 10), (12, 7), (3, 2), (1, 10), (7, 40)])
def test_endings_spread_from_the_first_step_on(monkeypatch: pytest.MonkeyPatch, rollouts: int, tokens: int) -> None:
    """Of n slots about n · h / T end in each step, and in T / h steps each ends once."""
    never_stops(monkeypatch)
    strides = -(-T // tokens)
    steps = fly(flight(Processes()), [lasting(rollouts, tokens)] * (3 * strides))
    endings = [len(step.ended) for step in steps]
    for number in range(1, strides + 1):
        assert abs(sum(endings[:number]) - number * rollouts / strides) < 1
    for first in range(2 * strides):
        assert sum(endings[first : first + strides]) == rollouts
    assert {rollout.length for step in steps[strides:] for rollout in step.ended} == {T}


def test_they_spread_again_after_a_step_in_which_all_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    never_stops(monkeypatch)
    run = [lasting(8, 10)] * 4 + [Decision(T, "full", 8, None)] + [lasting(8, 10)] * 4
    assert [len(step.ended) for step in fly(flight(Processes()), run)] == [2, 2, 2, 2, 8, 2, 2, 2, 2]


def test_slots_that_open_later_spread_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where slots had been closed in between: of 8, whose rollouts have to end first, 4 are left after 4 steps."""
    never_stops(monkeypatch)
    one = flight(Processes())
    run = [lasting(n, 10) for n in [4] * 4 + [8] * 8]
    assert [len(step.ended) for step in fly(one, run)] == [1] * 4 + [2] * 8
    fly(one, [lasting(4, 10)] * 4)
    (step,) = fly(one, [lasting(8, 10)])
    assert len(step.asked) == 8
    assert {slot.end for slot in one.slots if slot.rollout.length == 10} >= {20, 30, 40}
    assert [s.limit for s in step.asked if s.rollout.length == 0 and not s.keep] == [10]


def test_whole_rollouts_and_short_ones_make_a_step() -> None:
    steps = fly(flight(Processes()), [Decision(5, "mixed", 10, 3)] * 5)
    for step in steps:
        assert sorted(s.limit for s in step.asked) == [5] * 7 + [T] * 3
        assert len(step.ended) == 10
        assert not any(s.keep for s in step.asked)
    one = flight(Processes())
    for step in fly(one, [Decision(5, "mixed", 10, 3, continues=True)] * 20):
        assert len(step.asked) == 10
        assert sum(s.rollout.length > 0 or s.keep for s in step.asked) <= 3
        assert all(s.limit - s.rollout.length <= 5 for s in step.asked)
    assert 0 < len(one.slots) <= 3


@settings(max_examples=25)
@given(runs, seeds, st.sampled_from([1, 2, 3]))
def test_any_number_of_processes_has_the_same_rollouts(run: list[Decision], seed: int, samples: int) -> None:
    expected, two, three = (
        described(joined(together(size, lambda processes: fly(flight(processes, seed, samples), run))))
        for size in (1, 2, 3)
    )
    assert two == expected
    assert three == expected


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 8))
def test_processes_have_about_as_many_rollouts(size: int, steps: int) -> None:
    """They differ by the samples of a prompt at most, also where some of their rollouts stop early."""
    run = [lasting(12, 10)] * steps
    for step in zip(*together(size, lambda processes: fly(flight(processes), run)), strict=True):
        asked = [len(flown.asked) for flown in step]
        assert max(asked) - min(asked) <= 2


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (3, 2), (2, 3)])
@settings(max_examples=6)
@given(run=runs, seed=seeds, at=st.integers(0, 3))
def test_what_is_saved_goes_on_on_any_number_of_processes(
    run: list[Decision], seed: int, at: int, before: int, after: int
) -> None:
    run, at = [lasting(12, 7)] * 2 + run, 2 + at
    expected = described(joined(together(1, lambda processes: fly(flight(processes, seed), run))))

    def save(processes: Processes) -> tuple[dict[str, int], dict[str, Tensor]]:
        one = flight(processes, seed)
        fly(one, run[:at])
        return one.state_dict(), one.state(keep=processes.rank == 0)

    def resume(processes: Processes) -> list[Flown]:
        one = flight(processes, seed)
        one.load_state(*saved)
        return fly(one, run[at:], at)

    saved, *others = together(before, save)
    assert all(tensors == {} for _, tensors in others)
    assert all(tensor.is_contiguous() for tensor in saved[1].values())
    assert described(joined(together(after, resume))) == expected[at:]


def test_it_is_restored_to_the_bit() -> None:
    large = next(seed for seed in range(100) if fold(seed, 0) >= 2**63)
    one, other = (flight(Processes(), large) for _ in range(2))
    fly(one, [lasting(12, 7)] * 2)
    assert any(slot.rollout.seed >= 2**63 for slot in one.slots)
    assert all(slot.rollout.cache is not None for slot in one.slots)
    other.load_state(one.state_dict(), one.state())
    assert [slot.end for slot in other.slots] == [slot.end for slot in one.slots]
    for a, b in zip(one.slots, other.slots, strict=True):
        assert named(a.rollout) == named(b.rollout)
        assert a.rollout.prompt is not b.rollout.prompt
        for name in ("ids", "log_probs", "ages", "cache"):
            x, y = getattr(a.rollout, name), getattr(b.rollout, name)
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


@settings(max_examples=25)
@given(runs, seeds, decisions)
def test_a_step_that_is_given_up_leaves_everything_as_it_was(
    run: list[Decision], seed: int, abandoned: Decision
) -> None:
    straight, troubled = flight(Processes(), seed), flight(Processes(), seed)
    for step, decision in enumerate(run):
        before = troubled.state_dict(), [named(slot.rollout) for slot in troubled.slots]
        (slots,) = troubled.deal(abandoned, step)
        troubled.land(slots, [extend(slot.stretch(abandoned), step) for slot in slots])
        assert (troubled.state_dict(), [named(slot.rollout) for slot in troubled.slots]) == before
        assert described(fly(troubled, [decision], step)) == described(fly(straight, [decision], step))


cuts = st.integers(1, T).map(lambda tokens: Decision(tokens, "cut"))


@settings(max_examples=25)
@given(st.lists(cuts, min_size=1, max_size=8), seeds, sizes, st.sampled_from([None, 1, 2, 3, 6]))
def test_without_continuing_a_step_has_its_prompts_in_the_old_shares(
    run: list[Decision], seed: int, size: int, mini_batch: int | None
) -> None:
    """Process r of n has prompts r, r + n, r + 2 n, … of each mini-batch, each with all its samples."""

    def deal(processes: Processes) -> list[list[list[Slot]]]:
        one, steps = flight(processes, seed), []
        for step, decision in enumerate(run):
            steps.append(one.deal(decision, step, mini_batch and 2 * mini_batch))
            one.complete()
        return steps

    order = flight(Processes(), seed).order
    for rank, steps in enumerate(together(size, deal)):
        for step, (decision, batches) in enumerate(zip(run, steps, strict=True)):
            prompts = order.at(step)
            width = mini_batch or len(prompts)
            assert [[(slot.rollout.prompt.id, slot.rollout.sample) for slot in batch] for batch in batches] == [
                [(prompt.id, sample) for prompt in prompts[first : first + width][rank::size] for sample in range(2)]
                for first in range(0, len(prompts), width)
            ]
            for slot in (slot for batch in batches for slot in batch):
                assert slot.rollout.seed == fold(seed, step)
                stretch = slot.stretch(decision)
                assert (stretch.limit, stretch.keep) == (decision.tokens, False)


def test_mini_batches_and_rollouts_that_continue_exclude_each_other() -> None:
    one = flight(Processes())
    with pytest.raises(HorizonError, match=r"rollouts continue in step 3 \(continued\).*write no training\.mini_batch"):
        one.deal(lasting(4, 5), 3, mini_batch=2)
    fly(one, [lasting(4, 5)])
    with pytest.raises(HorizonError, match=r"rollouts continue in step 1 \(cut\)"):
        one.deal(Decision(5, "cut"), 1, mini_batch=2)


def test_a_step_with_more_rollouts_than_prompts_never_draws_the_same_numbers_twice() -> None:
    one = flight(Processes(), samples=1, prompts=12)
    for step in fly(one, [Decision(5, "many", rollouts=60), Decision(5, "few", rollouts=5)] * 3):
        assert len({key(s.rollout) for s in step.asked}) == len(step.asked)
