"""Checks decoding by graphs on a CPU: the same operations run there, and a fake graph shows when one is recorded."""

import pytest
import torch

from hopd.rollout import NativeEngine, Prompt, Sampling
from hopd.rollout.native import graph_decoder as module
from hopd.rollout.native.acceleration import decoding_note
from hopd.rollout.native.cache import new_cache
from hopd.rollout.native.graph_decoder import GraphDecoder, decodes_by_graph
from hopd.rollout.native.mask import DecodingMask
from tests.rollout.native.test_decoder import FAMILY, OTHERS, plain_log_probs, ragged, tiny


@pytest.fixture
def by_graph(monkeypatch):
    """Makes the engine decode by `GraphDecoder`s, and returns a list of them."""
    made = []

    def use(graph):
        def make(model):
            made.append(GraphDecoder(model, graph))
            return made[-1]

        monkeypatch.setattr("hopd.rollout.native.acceleration.decodes_by_graph", lambda model: True)
        monkeypatch.setattr("hopd.rollout.native.acceleration.GraphDecoder", make)
        return made

    return use


@pytest.fixture
def recordings(monkeypatch):
    """Replaces the recording by a fake that, like a graph, keeps reading and writing the tensors of its first run."""
    made = []

    def recorded(step):
        kept = step().clone()
        made.append(step)
        return lambda: kept.copy_(step())

    monkeypatch.setattr(module, "recorded", recorded)
    return made


@pytest.mark.parametrize("kind", FAMILY)
def test_rollouts_are_those_of_the_modules(kind, by_graph):
    """The cache grows, a prompt has several samples, and sequences end at different lengths."""
    model = tiny(kind, FAMILY[kind])
    made = by_graph(False)
    for rollout in NativeEngine(model, rows=5).sample(ragged(), 90, Sampling(0.0), 0):
        ids = rollout.prompt.ids[None]
        expected = model.model.generate(ids, max_new_tokens=90, do_sample=False, eos_token_id=1)[0, ids.shape[1] :]
        assert rollout.ids.tolist() == expected.tolist()
    for rollout in NativeEngine(model).sample(ragged(), 90, Sampling(), 0, samples=3):
        torch.testing.assert_close(rollout.log_probs, plain_log_probs(model, rollout), rtol=1e-5, atol=1e-4)
    assert made


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_hidden_states_are_those_of_the_model(kind):
    """Sequences of several lengths are compared token by token, in fp32, to 1e-5."""
    model = tiny(kind, {})
    ids, hidden_before = torch.randint(3, 48, (3, 12)), torch.tensor([0, 4, 7])
    with torch.no_grad():
        decoder, cache = GraphDecoder(model), prefilled(model, ids[:, :8], hidden_before)
        cos, sin = decoder.angles(12)
        for t in range(8, 12):
            positions = t - hidden_before
            found = decoder.hidden(ids[:, t], (cos[positions], sin[positions]), cache, hidden_before)
            for row, start in enumerate(hidden_before.tolist()):
                expected = model.hidden(ids[row : row + 1, start : t + 1])[0, -1]
                torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_in_bf16_it_rounds_where_the_models_modules_do(kind):
    """Everything but attention is computed exactly as the learner computes it."""
    model = tiny(kind, {})
    model.model.to(torch.bfloat16)
    ids = torch.randint(3, 48, (3, 12), generator=torch.Generator().manual_seed(0))
    start = torch.zeros(3, dtype=torch.long)
    with torch.no_grad():
        decoder, cache = GraphDecoder(model), prefilled(model, ids[:, :8], start)
        cos, sin = decoder.angles(12)
        differences = []
        for t in range(8, 12):
            found = decoder.hidden(ids[:, t], (cos[[t] * 3], sin[[t] * 3]), cache, start)
            expected = model.hidden(ids[:, : t + 1])[:, -1]
            differences.append((found != expected).float().mean())
    print(f"{kind}: {float(torch.stack(differences).mean()):.3f} of the hidden states differ")
    assert float(torch.stack(differences).mean()) < 0.5


def prefilled(model, ids, start):
    mask, cache = torch.arange(ids.shape[1]) >= start[:, None], new_cache(model.config)
    model.hidden(ids, DecodingMask(model, mask).of_prompts(), (mask.cumsum(-1) - 1).clamp(min=0), cache)
    return cache


def test_a_graph_is_recorded_where_the_cache_moves_and_nowhere_else(by_graph, recordings, monkeypatch):
    """No sequence ends within 200 tokens, and the cache moves at 64, 128 and 192 positions."""
    model = tiny("qwen2", {"eos_token_id": None})
    prompts = [Prompt(i, torch.arange(3, 9 + i)) for i in range(4)]
    expected = NativeEngine(model).sample(prompts, 200, Sampling(), 0)
    by_graph(True)
    found = NativeEngine(model).sample(prompts, 200, Sampling(), 0)
    assert 3 <= len(recordings) <= 5
    for a, b in zip(found, expected, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        torch.testing.assert_close(a.log_probs, b.log_probs, rtol=1e-4, atol=1e-4)


def test_the_graph_follows_dropped_sequences_and_new_waves(by_graph, recordings):
    model = tiny("qwen3", {})
    expected = NativeEngine(model, rows=6).sample(ragged(), 150, Sampling(), 3, samples=4)
    assert len({rollout.length for rollout in expected}) > 5  # sequences do end early
    by_graph(True)
    found = NativeEngine(model, rows=6).sample(ragged(), 150, Sampling(), 3, samples=4)
    assert recordings
    for a, b in zip(found, expected, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        torch.testing.assert_close(a.log_probs, b.log_probs, rtol=1e-4, atol=1e-4)


def test_a_graph_is_for_gpus_and_for_models_of_that_shape(monkeypatch):
    model, others = tiny("llama", {}), {why: tiny(*OTHERS[why]) for why in set(OTHERS) - {"heads of 8"}}
    assert not decodes_by_graph(model)
    monkeypatch.setattr("hopd.model.LanguageModel.device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert decodes_by_graph(model)
    assert decoding_note(model) == "decoding: float32 on cuda, one CUDA graph a token"
    assert "layer by layer, grouped attention" in decoding_note(others["another activation"])
    monkeypatch.setattr("hopd.model.LanguageModel.device", torch.device("cuda", 1))
    assert not decodes_by_graph(model)  # the current GPU is the first
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert decodes_by_graph(model)
    assert not [why for why, other in others.items() if decodes_by_graph(other)]
