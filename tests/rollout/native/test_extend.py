"""With constant weights, a rollout that continues over steps is the one that nothing interrupts.

With kept keys and the CPU's kernels, log-probs are the same to the bit where all rollouts go on together. Elsewhere the
tokens are the same and log-probs differ by rounding: the order in which attention adds up depends on where a sequence
lies in its batch, and products of many tokens, a prefix that is read again, are computed otherwise than those of one.
"""

from collections.abc import Sequence

import pytest
import torch

from hopd.compute import kernels
from hopd.errors import EngineError
from hopd.model import load
from hopd.rollout import Engine, FinishReason, NativeEngine, Prompt, Rollout, Sampling, Stretch
from hopd.rollout.native.cache import attends_everywhere
from hopd.rollout.native.decoder import decodes_by_kernels
from hopd.rollout.native.engine import _Rows
from hopd.tasks import RepeatedAddition
from tests.rollout.native import test_decoder, test_engine, test_graph_decoder

by_graph, recordings = test_graph_decoder.by_graph, test_graph_decoder.recordings  # fixtures
T = 70  # tokens of a whole rollout; the cache grows at 64
SHIFTED, REREAD = 1e-5, 5e-5  # nats by which log-probs may differ: sequences lie elsewhere, a prefix is read again


@pytest.fixture(scope="module")
def student():
    return load(test_engine.QUICKSTART)


@pytest.fixture(scope="module")
def starts(student):
    """Returns 18 rollouts that begin, two of each prompt, with seeds that need all 64 bits. Prompts have 3 to 11
    tokens, and many of the rollouts stop by themselves before T."""
    texts = [problem.prompt for problem in RepeatedAddition(3, 9).problems]
    ids = [student.tokenizer(text).input_ids[: 3 + i] for i, text in enumerate(texts)]
    return begun([Prompt(100 + i, torch.tensor(prompt)) for i, prompt in enumerate(ids)], samples=2)


@pytest.fixture(scope="module")
def whole(student, starts):
    """Returns the same rollouts without an interruption."""
    return NativeEngine(student).extend([Stretch(start, T) for start in starts], Sampling())


def begun(prompts: Sequence[Prompt], samples: int = 1) -> list[Rollout]:
    return [Rollout.start(prompt, sample, 2**63 + prompt.id) for prompt in prompts for sample in range(samples)]


def goes_on(rollout: Rollout, full: int) -> bool:
    return rollout.finish is FinishReason.HORIZON and rollout.length < full


def step(engine: Engine, rollouts: Sequence[Rollout], tokens: int, full: int, sampling: Sampling) -> list[Rollout]:
    """Gives each rollout that goes on so many tokens more; the others are not asked for."""
    asked = [Stretch(r, min(full, r.length + tokens), r.length + tokens < full) for r in rollouts if goes_on(r, full)]
    extended = iter(engine.extend(asked, sampling))
    return [next(extended) if goes_on(rollout, full) else rollout for rollout in rollouts]


def continued(engine: Engine, rollouts: Sequence[Rollout], tokens: int, full: int = T, sampling=None) -> list[Rollout]:
    """Gives each rollout so many tokens a step, until it ends."""
    while any(goes_on(rollout, full) for rollout in rollouts):
        rollouts = step(engine, rollouts, tokens, full, sampling or Sampling())
    return list(rollouts)


def assert_same(found: Sequence[Rollout], expected: Sequence[Rollout], within: float = 0.0) -> None:
    """Compares log-probs to the bit, unless they may differ `within` so many nats."""
    for a, b in zip(found, expected, strict=True):
        assert (a.prompt.id, a.sample, a.seed) == (b.prompt.id, b.sample, b.seed)
        assert (a.ids.tolist(), a.finish) == (b.ids.tolist(), b.finish)
        torch.testing.assert_close(a.log_probs, b.log_probs, rtol=within, atol=within)


by_kernels = pytest.mark.skipif(kernels.compiled() is None, reason="the kernels need a C compiler, cc, on Linux")


@by_kernels
@pytest.mark.parametrize("tokens", [4, 33])
def test_with_kept_keys_every_stride_gives_the_same_bits(student, starts, whole, tokens):
    assert decodes_by_kernels(student)
    assert {rollout.finish for rollout in whole} == {FinishReason.STOP, FinishReason.HORIZON}
    assert_same(continued(NativeEngine(student), starts, tokens), whole)


@pytest.mark.parametrize("tokens", [10, 33])
def test_with_refreshed_keys_every_stride_gives_the_same_tokens(student, starts, whole, tokens):
    engine = NativeEngine(student, keeps=False)
    found = continued(engine, starts, tokens)
    assert_same(found, whole, REREAD)
    assert all(rollout.cache is None for rollout in step(engine, starts, tokens, T, Sampling()))


@pytest.mark.parametrize("rows", [4, 64])
def test_fresh_and_continued_rollouts_of_any_limits_share_batches_and_waves(student, starts, whole, rows):
    """Three rollouts join in each step, each gets another number of tokens, and every third pauses."""
    engine, rollouts, steps = NativeEngine(student, rows), list(starts), 0
    while any(goes_on(rollout, T) for rollout in rollouts):
        steps += 1
        asked = {
            i: Stretch(rollouts[i], min(T, rollouts[i].length + 5 + 7 * ((i + steps) % 4)), keep=True)
            for i in range(min(3 * steps, len(rollouts)))
            if goes_on(rollouts[i], T) and (i + steps) % 3
        }
        for i, rollout in zip(asked, engine.extend(list(asked.values()), Sampling()), strict=True):
            assert rollout.length <= asked[i].limit
            rollouts[i] = rollout
    assert steps > 10
    assert_same(rollouts, whole, SHIFTED)


def test_a_rollout_that_is_dropped_while_others_go_on_keeps_its_keys(student, starts, whole, monkeypatch):
    """One row in six goes on for 60 tokens, so the batch is compacted when the others have 4."""
    select, left = _Rows.select, list[int]()

    def watched(rows, kept):
        left.append(len(kept))
        return select(rows, kept)

    monkeypatch.setattr(_Rows, "select", watched)
    limits = [60 if i % 6 == 0 else 4 for i in range(len(starts))]
    asked = [Stretch(start, limit, keep=True) for start, limit in zip(starts, limits, strict=True)]
    rollouts = NativeEngine(student).extend(asked, Sampling())
    assert left[0] == 3
    layers, heads = student.config.num_hidden_layers, student.config.num_key_value_heads
    for rollout, limit in zip(rollouts, limits, strict=True):
        if rollout.finish is FinishReason.STOP:
            assert rollout.cache is None
            continue
        assert rollout.length == limit
        width = len(rollout.prompt.ids) + limit - 1
        assert rollout.cache is not None
        assert rollout.cache.shape == (layers, 2, heads, width, student.head_width)
    assert_same(continued(NativeEngine(student), rollouts, 20), whole, SHIFTED)


def test_only_a_rollout_that_goes_on_keeps_its_keys(student, starts):
    asked = [Stretch(start, 30, keep=bool(i % 3)) for i, start in enumerate(starts)]
    found = NativeEngine(student).extend(asked, Sampling())
    assert {rollout.finish for rollout in found} == {FinishReason.HORIZON, FinishReason.STOP}
    for stretch, rollout in zip(asked, found, strict=True):
        assert (rollout.cache is not None) == (stretch.keep and rollout.finish is FinishReason.HORIZON)


def test_the_rollouts_that_were_given_stay_as_they_were(student, starts):
    """A step that is given up is done again from them."""
    first = step(NativeEngine(student), starts, 10, T, Sampling())
    parts = [(r.ids, r.log_probs, *([] if r.cache is None else [r.cache])) for r in first]
    before = [[part.clone() for part in of_rollout] for of_rollout in parts]
    second = step(NativeEngine(student), first, 10, T, Sampling())
    assert_same(step(NativeEngine(student), first, 10, T, Sampling()), second)
    for of_rollout, copies in zip(parts, before, strict=True):
        assert all(torch.equal(part, copy) for part, copy in zip(of_rollout, copies, strict=True))


@by_kernels
@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.7, top_p=0.9), Sampling(top_k=3)])
def test_every_way_of_sampling_continues(student, starts, sampling):
    expected = NativeEngine(student).extend([Stretch(start, 30) for start in starts], sampling)
    assert_same(continued(NativeEngine(student), starts, 12, 30, sampling), expected)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("tokens", [3, 8])
def test_the_context_ends_a_continued_rollout_where_it_ends_another(starts, keeps, tokens):
    """Prompts of 3 to 11 tokens leave room for 13 to 21 in a context of 24: a stride ends there for some of them, and
    in front of it for others."""
    small = load(test_engine.QUICKSTART)
    small.config.max_position_embeddings = 24
    expected = NativeEngine(small).extend([Stretch(start, T) for start in starts], Sampling())
    assert {rollout.finish for rollout in expected} == {FinishReason.CONTEXT, FinishReason.STOP}
    engine, rollouts = NativeEngine(small, keeps=keeps), starts
    for _ in range(-(-21 // tokens)):
        rollouts = step(engine, rollouts, tokens, T, Sampling())
        assert all((r.cache is not None) == (keeps and r.finish is FinishReason.HORIZON) for r in rollouts)
    assert_same(rollouts, expected, REREAD)


@pytest.mark.parametrize("kind", test_engine.TINY)
def test_every_architecture_continues(kind):
    """Families with a sliding window keep their keys too; the state of recurrent layers is computed again."""
    model = test_engine.tiny(kind)
    check_continued(model, keeps=True, expected=attends_everywhere(model.config))
    check_continued(model, keeps=False, expected=False)


def check_continued(model, keeps: bool, expected: bool) -> None:
    """Compares rollouts in strides of 7 with whole ones; `expected` says whether keys are kept."""
    rollouts = begun([Prompt(i, torch.arange(3 + i, 8 + 2 * i) % 45 + 3) for i in range(3)], samples=2)
    whole = NativeEngine(model).extend([Stretch(rollout, 20) for rollout in rollouts], Sampling())
    engine = NativeEngine(model, rows=4, keeps=keeps)
    first = step(engine, rollouts, 7, 20, Sampling())
    assert {rollout.cache is not None for rollout in first if goes_on(rollout, 20)} == {expected}
    assert_same(continued(engine, first, 7, 20), whole, REREAD)


def test_keys_and_values_of_several_shapes_are_computed_again(monkeypatch):
    """Keys of DeepSeek's attention are wider than its values."""
    options = {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "first_k_dense_replace": 2}
    widths = {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}
    monkeypatch.setitem(test_engine.TINY, "deepseek_v3", options | widths)
    model = test_engine.tiny("deepseek_v3")
    assert attends_everywhere(model.config)
    check_continued(model, keeps=True, expected=False)


@by_kernels
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_in_bf16_kept_keys_give_the_same_bits_too(kind):
    model = test_decoder.tiny(kind, {}, torch.bfloat16)
    rollouts = begun(test_decoder.ragged(), samples=2)
    expected = NativeEngine(model).extend([Stretch(rollout, 40) for rollout in rollouts], Sampling())
    assert_same(continued(NativeEngine(model), rollouts, 9, 40), expected)


@pytest.mark.parametrize("graph", [False, True])
def test_a_graph_continues_them(graph, by_graph, recordings):
    """The recorded graph is a fake that, like one, reads and writes the tensors of its first run."""
    model = test_decoder.tiny("qwen3", {})
    rollouts = begun(test_decoder.ragged(4), samples=2)
    made = by_graph(graph)
    expected = NativeEngine(model).extend([Stretch(rollout, T) for rollout in rollouts], Sampling())
    assert_same(continued(NativeEngine(model, rows=5), rollouts, 20), expected, SHIFTED)
    assert_same(continued(NativeEngine(model, rows=5, keeps=False), rollouts, 20), expected, REREAD)
    assert len(made) == 1 + 2 * 4
    assert bool(recordings) == graph


class Own(Engine):
    """Has `sample` only, as an engine of one's own may."""

    def __init__(self, student):
        self.native, self.asked = NativeEngine(student), []

    def sample(self, prompts, max_tokens, sampling, seed, samples=1):
        self.asked.append((len(prompts), max_tokens))
        return self.native.sample(prompts, max_tokens, sampling, seed, samples)


def test_an_engine_with_sample_alone_starts_rollouts_of_several_limits(student, starts, whole):
    engine = Own(student)
    limits = [T if i < 4 else 9 for i in range(len(starts))]
    found = engine.extend([Stretch(start, limit) for start, limit in zip(starts, limits, strict=True)], Sampling())
    assert_same(found[:4], whole[:4], SHIFTED)
    for short, long in zip(found[4:], whole[4:], strict=True):
        assert short.ids.tolist() == long.ids[:9].tolist()
    assert [tokens for _, tokens in engine.asked] == [T, T] + [9] * 7  # each prompt has a seed of its own here


def test_an_engine_with_sample_alone_is_asked_even_for_nothing(student):
    """It may have to take part in what processes do together."""
    engine = Own(student)
    assert engine.extend([], Sampling()) == []
    assert engine.asked == [(0, 1)]


@pytest.mark.parametrize("begun", [True, False])
def test_an_engine_with_sample_alone_refuses_to_continue_at_the_first_step(student, starts, begun):
    """Later, a checkpoint would hold rollouts that it can never end."""
    rollout = NativeEngine(student).extend([Stretch(starts[0], 5)], Sampling())[0] if begun else starts[0]
    with pytest.raises(EngineError, match="Own has no `extend`, so rollouts cannot continue; write continue: false"):
        Own(student).extend([Stretch(rollout, 10, keep=not begun)], Sampling())
