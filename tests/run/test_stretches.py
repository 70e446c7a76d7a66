"""What the ledger counts of rollouts that continue: in strides, with kept keys, they cost what whole ones cost."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hopd.model import load
from hopd.model.flops import PassCost
from hopd.rollout import FinishReason, NativeEngine, Prompt, Rollout, Sampling, Stretch
from hopd.run.ledger import Account, Ledger

COST = PassCost(linear=2.0, attention=0.5, head=3.0)
prompt_lengths = st.integers(1, 9)
strides = st.lists(st.integers(1, 12), min_size=1, max_size=6)  # the tokens that a rollout gains in each step


def start(length: int, number: int = 0, sample: int = 0) -> Rollout:
    return Rollout.start(Prompt(number, torch.ones(length, dtype=torch.long)), sample, seed=0)


def gained(rollout: Rollout, tokens: int, keeps: bool) -> tuple[Stretch, Rollout]:
    """Extends a rollout as an engine would that `keeps` keys and values."""
    new = torch.zeros(tokens, dtype=torch.long)
    cache = torch.zeros(1) if keeps else None
    after = rollout.extended(new, new.float(), FinishReason.HORIZON, cache)
    return Stretch(rollout, after.length, keep=True), after


def counted(*steps: list[tuple[Stretch, Rollout]]) -> Account:
    ledger = Ledger(Path("never-written"), writes=False)
    for step in steps:
        ledger.add_stretches([stretch for stretch, _ in step], [after for _, after in step], COST)
    return ledger.pending


def in_strides(rollout: Rollout, tokens: list[int], keeps: bool) -> Account:
    steps = []
    for number in tokens:
        steps.append([gained(rollout, number, keeps)])
        rollout = steps[-1][0][1]
    return counted(*steps)


@given(prompt_lengths, strides)
def test_with_kept_keys_strides_cost_what_the_whole_rollout_costs(prompt: int, tokens: list[int]) -> None:
    whole, parts = counted([gained(start(prompt), sum(tokens), False)]), in_strides(start(prompt), tokens, keeps=True)
    assert parts.flops["rollout"] == pytest.approx(whole.flops["rollout"])
    assert parts.flops["rollout"] == pytest.approx(COST.generate([(prompt, sum(tokens))], [prompt]))
    assert parts.prompt_tokens == whole.prompt_tokens == prompt
    assert parts.generated_tokens == whole.generated_tokens == sum(tokens)
    assert parts.serial_tokens == sum(tokens)


@given(prompt_lengths, strides)
def test_with_refreshed_keys_they_cost_more_by_the_prefixes_that_are_read_again(prompt: int, tokens: list[int]) -> None:
    """A prefix's last token would have been passed through the model anyway."""
    kept, read = (in_strides(start(prompt), tokens, keeps) for keeps in (True, False))
    prefixes = [prompt + sum(tokens[:number]) for number in range(1, len(tokens))]
    again = COST.forward([length - 1 for length in prefixes], head_positions=0)
    assert read.flops["rollout"] - kept.flops["rollout"] == pytest.approx(again, abs=1e-6)
    assert read.prompt_tokens == prompt + sum(prefixes)
    assert read.generated_tokens == kept.generated_tokens


@given(
    st.lists(st.tuples(prompt_lengths, st.lists(st.integers(1, 12), min_size=1, max_size=4)), min_size=1, max_size=4)
)
def test_a_prompt_is_counted_once_for_the_samples_that_begin_in_a_step(prompts: list[tuple[int, list[int]]]) -> None:
    step = [
        gained(start(length, number, sample), tokens, True)
        for number, (length, samples) in enumerate(prompts)
        for sample, tokens in enumerate(samples)
    ]
    once = counted(step)
    assert once.prompt_tokens == sum(length for length, _ in prompts)
    assert once.serial_tokens == max(tokens for _, samples in prompts for tokens in samples)
    pairs = [(length, tokens) for length, samples in prompts for tokens in samples]
    assert once.flops["rollout"] == pytest.approx(COST.generate(pairs, [length for length, _ in prompts]))
    assert counted(step, step).prompt_tokens == 2 * once.prompt_tokens  # they begin in two steps
    going_on = [gained(after, 3, True) for _, after in step]
    assert counted(going_on).prompt_tokens == 0


def test_a_step_without_rollouts_costs_nothing() -> None:
    assert counted([]).flops["rollout"] == counted([]).generated_tokens == counted([]).serial_tokens == 0


def test_the_full_equivalent_counts_rollouts_when_they_end() -> None:
    """A rollout that the horizon cut counts as T, wherever that was; one that ended by itself as it is."""
    ledger, one = Ledger(Path("never-written"), writes=False), start(4)
    (first, after) = gained(one, 10, True)
    ledger.add_stretches([first], [after], COST)
    ledger.add_ended([], full_tokens=50)
    assert ledger.pending.full_rollouts_tokens == 0
    (second, after) = gained(after, 10, True)
    ledger.add_stretches([second], [after], COST)
    ended = [replace(after, finish=reason) for reason in FinishReason]
    ledger.add_ended(ended, full_tokens=50)
    assert ledger.pending.full_rollouts_tokens == 50 + 20 + 20
    assert ledger.pending.generated_tokens == 20


@pytest.mark.parametrize("keeps", [True, False])
def test_the_native_engine_is_counted_so(keeps: bool) -> None:
    """With rollouts of a real student."""
    student = load("package:hopd/quickstart/student")
    prompts = [Prompt(i, torch.arange(4, 8 + 3 * i)) for i in range(2)]
    engine, cost = NativeEngine(student, keeps=keeps), PassCost.of(student)
    rollouts = [Rollout.start(prompt, sample, 5) for prompt in prompts for sample in range(2)]
    ledger = Ledger(Path("never-written"), writes=False)
    for limit in (6, 20, 30):
        stretches = [Stretch(r, limit, limit < 30) for r in rollouts if r.finish is FinishReason.HORIZON]
        extended = engine.extend(stretches, Sampling())
        ledger.add_stretches(stretches, extended, cost)
        new = {(r.prompt.id, r.sample): r for r in extended}
        rollouts = [new.get((r.prompt.id, r.sample), r) for r in rollouts]
    assert ledger.pending.generated_tokens == sum(r.length for r in rollouts)
    lengths = [len(prompt.ids) for prompt in prompts]
    whole = cost.generate([(len(r.prompt.ids), r.length) for r in rollouts], lengths)
    again = [len(r.prompt.ids) + limit - 1 for r in rollouts for limit in (6, 20) if r.length > limit]
    expected = whole if keeps else whole + cost.forward(again, 0)
    assert ledger.pending.flops["rollout"] == pytest.approx(expected)
    assert ledger.pending.prompt_tokens == sum(lengths) + (0 if keeps else sum(n + 1 for n in again))
