"""Checks what the engine installs in place of a model's attention and projections, and that it restores them."""

import pytest
import torch

from hopd.errors import TaskError
from hopd.model import load
from hopd.rollout import NativeEngine, Prompt, Sampling
from hopd.rollout.native.acceleration import decoding, decoding_note

QUICKSTART = "package:hopd/quickstart/student"


def state_of(model):
    replaced = [name for name, module in model.model.named_modules() if "forward" in vars(module)]
    return model.model.config._attn_implementation, replaced


def test_the_model_is_as_it_was_after_a_rollout_and_after_an_error():
    model = load(QUICKSTART)
    before = state_of(model)
    engine = NativeEngine(model)
    prompts = [Prompt(0, torch.tensor([1, 2, 3]))]
    with decoding(model, rows=4):
        assert state_of(model) != before
    engine.sample(prompts, 4, Sampling(), seed=0)
    assert state_of(model) == before
    with pytest.raises(TaskError):
        engine.sample([Prompt(0, torch.zeros(0, dtype=torch.long))], 4, Sampling(), seed=0)
    with pytest.raises(IndexError):  # an id outside of the vocabulary, while the model decodes
        engine.sample([Prompt(0, torch.tensor([10_000]))], 4, Sampling(), seed=0)
    assert state_of(model) == before


def test_weights_that_change_between_rollouts_are_seen():
    """The packed copies must not outlive the weights that they were made from."""
    model = load(QUICKSTART)
    prompts = [Prompt(i, torch.tensor([1, 2, 3 + i])) for i in range(8)]
    first = NativeEngine(model).sample(prompts, 20, Sampling(), seed=0)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(0.5)
    second = NativeEngine(model).sample(prompts, 20, Sampling(), seed=0)
    assert [r.ids.tolist() for r in first] != [r.ids.tolist() for r in second]
    ids = torch.cat([second[0].prompt.ids, second[0].ids])[None]
    with torch.no_grad():
        log_probs = model.model(input_ids=ids).logits[0, 2:-1].log_softmax(-1)
    expected = log_probs.gather(-1, second[0].ids[:, None])[:, 0]
    torch.testing.assert_close(second[0].log_probs, expected, rtol=1e-4, atol=1e-4)


def test_the_note_says_what_a_model_decodes_with(monkeypatch):
    model = load(QUICKSTART)
    assert "kernels compiled" in decoding_note(model)
    monkeypatch.setattr("hopd.rollout.native.acceleration.decodes_by_kernels", lambda model: False)
    assert "grouped" in decoding_note(model)
    model.model.set_attn_implementation("eager")
    assert "eager" in decoding_note(model)
    assert "grouped" not in decoding_note(model)
