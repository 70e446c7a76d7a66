"""What the engine puts in place of a model's own attention and projections while it decodes, and takes away again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hopd.errors import TaskError
from hopd.model import load
from hopd.rollout import NativeEngine, Prompt, Sampling
from hopd.rollout.decoding import decoding, decoding_note, packed, packs, projection

QUICKSTART = "package:hopd/quickstart/student"


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(1, 70), st.integers(1, 40), st.booleans(), st.integers(0, 1000))
@pytest.mark.skipif(not packs(torch.float32), reason="this build of torch packs no weights")
def test_a_packed_projection_is_a_projection(rows, inputs, outputs, with_bias, seed):
    """For the number of rows that it was packed for, and for any other."""
    weight, bias = random(outputs, inputs, seed=seed), random(outputs, seed=seed + 1) if with_bias else None
    project = packed(weight, bias, rows=64)
    x = random(rows, 1, inputs, seed=seed + 2)
    torch.testing.assert_close(project(x), nn.functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inputs", [64, 1100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_projection_is_one_whatever_it_is_computed_with(inputs, dtype):
    weight, bias = random(1000, inputs, seed=0).to(dtype), random(1000, seed=1).to(dtype)
    x = random(5, 1, inputs, seed=2).to(dtype)
    for offset in (bias, None):
        expected = nn.functional.linear(x.float(), weight.float(), None if offset is None else offset.float())
        got = projection(weight, offset, rows=5)(x).float()
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=0.2 if dtype == torch.bfloat16 else 1e-3)


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
    with pytest.raises(IndexError):  # an id outside of the vocabulary, in the middle of the work
        engine.sample([Prompt(0, torch.tensor([10_000]))], 4, Sampling(), seed=0)
    assert state_of(model) == before


def test_weights_that_change_between_rollouts_are_seen():
    """The packed copies must not outlive the weights they were made of."""
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


def test_the_note_says_what_a_model_decodes_with():
    model = load(QUICKSTART)
    assert "grouped" in decoding_note(model)
    model.model.set_attn_implementation("eager")
    assert "eager" in decoding_note(model)
    assert "grouped" not in decoding_note(model)
