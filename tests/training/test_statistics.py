"""What a step's statistics say: of which age tokens are, how rollouts fill the blocks, what is left out."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hopd.horizon import Evidence, First, Whole
from hopd.model import load
from hopd.objective import Full, TokenStatistics
from hopd.objective.divergence import reverse_kl
from hopd.processes import Processes
from hopd.rollout import FinishReason, NativeEngine, Prompt, Rollout, Sampling, pack
from hopd.tasks import RepeatedAddition
from hopd.training.block_sums import BLOCKS
from hopd.training.statistics import StepStatistics
from tests.training.flown import together
from tests.training.test_normalisation import STUDENT, TEACHER, learner


def rollout(number: int, length: int, finish: FinishReason, stride: int) -> Rollout:
    """Makes a rollout whose tokens were sampled in steps of `stride`. Its log-probs are −1."""
    ids = torch.arange(length) + 100 * number
    ages = torch.arange(length - 1, -1, -1) // stride
    prompt = Prompt(number, torch.tensor([1, 2]))
    return Rollout(prompt, 0, ids, torch.full((length,), -1.0), finish, ages=ages if int(ages[0]) else None)


def measured(tokens: torch.Tensor) -> TokenStatistics:
    """Makes up numbers for tokens; the learner's log-prob differs from the sampler's by what the token says."""
    value = tokens % 97 / 97
    return TokenStatistics(loss=1 + value, log_ratio=0.5 - value, log_prob=-1 + value * (-1) ** (tokens % 2))


@st.composite
def steps(draw: st.DrawFn) -> tuple[int, list[Rollout]]:
    """Draws a full length, and rollouts of at most that."""
    full = draw(st.integers(1, 60))
    lengths = draw(st.lists(st.integers(1, full), min_size=1, max_size=8))
    return full, [
        rollout(number, length, draw(st.sampled_from(FinishReason)), draw(st.integers(1, full)))
        for number, length in enumerate(lengths)
    ]


def collected(
    full: int, rollouts: list[Rollout], window: Any = None, budget: int = 100, **options: Any
) -> StepStatistics:
    statistics = StepStatistics(full, **options)
    spans = [(window or Whole()).span(one.length, 0.0) for one in rollouts]
    for batch in pack(rollouts, spans, budget, whole_response=True):
        statistics.add_tokens(batch.at, measured(batch.at.tokens))
    statistics.add_rollouts(rollouts)
    return statistics


@settings(max_examples=40)
@given(steps(), st.integers(1, 70))
def test_blocks_cover_the_full_length_and_count_tokens_and_rollouts(step: tuple[int, list[Rollout]], kept: int) -> None:
    full, rollouts = step
    evidence = collected(full, rollouts, First(kept)).evidence(step=3, horizon=full)
    blocks = evidence.blocks
    assert len(blocks) == BLOCKS
    assert [blocks[0].start, *(block.end for block in blocks)] == [*(block.start for block in blocks), full]
    assert sum(block.tokens for block in blocks) == sum(evidence.counts) == sum(min(r.length, kept) for r in rollouts)
    for block in blocks:
        places = range(block.start, block.end)
        assert block.tokens == sum(t < min(one.length, kept) for one in rollouts for t in places)
        assert block.rollouts == sum(any(t < one.length for t in places) for one in rollouts)
        assert block.stopped == sum(one.finish is FinishReason.STOP and one.length - 1 in places for one in rollouts)
    assert evidence.stopped == sum(block.stopped for block in blocks)
    assert evidence.rollouts == len(rollouts) == blocks[0].rollouts


@settings(max_examples=40)
@given(steps(), st.booleans())
def test_a_block_has_the_mean_divergence_of_its_tokens(step: tuple[int, list[Rollout]], exact: bool) -> None:
    full, rollouts = step
    for block in collected(full, rollouts, exact=exact).evidence(0, full).blocks:
        values = measured(torch.cat([one.ids[block.start : block.end] for one in rollouts]))
        expected = values.loss if exact else -values.log_ratio
        assert block.reverse_kl == pytest.approx(float(expected.mean()) if len(expected) else 0.0)


@settings(max_examples=40)
@given(steps())
def test_mismatch_is_of_fresh_tokens_and_staleness_of_older_ones(step: tuple[int, list[Rollout]]) -> None:
    full, rollouts = step
    metrics = collected(full, rollouts).metrics()
    ages = torch.cat([one.age_of_tokens for one in rollouts])
    apart = (measured(torch.cat([one.ids for one in rollouts])).log_prob + 1).abs()
    assert metrics["mismatch"] == pytest.approx(float(apart[ages == 0].mean()), abs=1e-6)
    assert ("staleness" in metrics) == ("mean_age" in metrics) == bool((ages > 0).any())
    if "staleness" in metrics:
        assert metrics["staleness"] == pytest.approx(float(apart[ages > 0].mean()), abs=1e-6)
        assert metrics["mean_age"] == pytest.approx(float(ages.double().mean()))
    assert collected(full, rollouts).evidence(0, full).mean_age == pytest.approx(float(ages.double().mean()))


def test_where_no_loss_token_is_of_the_step_there_is_no_mismatch() -> None:
    metrics = collected(40, [rollout(0, 30, FinishReason.STOP, stride=10)], First(10)).metrics()
    assert "mismatch" not in metrics
    assert metrics["mean_age"] == 2


def test_a_step_in_which_all_go_on_has_no_means() -> None:
    statistics = StepStatistics(40)
    statistics.add_gained(24)
    assert statistics.metrics() == {"rollouts": 0}
    evidence = statistics.evidence(7, 8)
    assert evidence == Evidence(7, 8, 0, 0, 0.0, (), (), (), evidence.blocks, generated_tokens=24)
    assert {(block.rollouts, block.tokens) for block in evidence.blocks} == {(0, 0)}


@settings(max_examples=15)
@given(steps(), st.integers(1, 40), st.sampled_from([2, 3]))
def test_micro_batches_and_processes_add_up(step: tuple[int, list[Rollout]], budget: int, size: int) -> None:
    full, rollouts = step

    def part(processes: Processes) -> StepStatistics:
        mine = collected(full, rollouts[processes.rank :: processes.size], budget=budget)
        mine.add_gained(10 * (processes.rank + 1))
        return mine.summed(processes)

    (whole,), parts = together(1, part), together(size, part)
    for each in parts:
        assert each.evidence(0, full).generated_tokens == 10 * size * (size + 1) // 2
        for name in set(whole.sums) - {"gained"}:
            assert each.sums[name] == pytest.approx(whole.sums[name], abs=1e-5), name
        torch.testing.assert_close(each.blocks, whole.blocks, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(each.positions, whole.positions, rtol=1e-5, atol=1e-5)


def test_for_the_estimator_full_blocks_have_the_exact_divergence(tmp_path: Any) -> None:
    """It is compared with plain forward passes of both models over each rollout."""
    student, teacher = load(STUDENT), load(TEACHER)
    prompts = [
        Prompt(problem.id, torch.tensor(student.tokenizer(problem.prompt).input_ids))
        for problem in RepeatedAddition(3, 4).problems
    ]
    rollouts = NativeEngine(student).sample(prompts, 70, Sampling(), seed=0)
    made, statistics = learner((student, teacher), tmp_path, objective=Full()), StepStatistics(80, exact=True)
    made.optimizer.adamw.zero_grad()
    made.accumulate(rollouts, seed=0, statistics=statistics)
    of_block: dict[int, list[float]] = {}
    for one in rollouts:
        ids = torch.cat([one.prompt.ids, one.ids])[None, :-1]
        with torch.no_grad():
            s, g = (model.model(input_ids=ids).logits[0, -one.length :].log_softmax(-1) for model in (student, teacher))
        for t, value in enumerate(reverse_kl(s, g).tolist()):
            of_block.setdefault(t // 8, []).append(value)
    blocks = statistics.evidence(0, 70).blocks
    assert len(of_block) > 3
    for number, values in of_block.items():
        assert blocks[number].reverse_kl == pytest.approx(sum(values) / len(values), rel=1e-3, abs=1e-6)
