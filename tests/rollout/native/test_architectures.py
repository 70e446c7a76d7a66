"""Checks that architectures with caches, heads or masks of their own decode as they learn, or are refused in words."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoTokenizer

from hopd.errors import ModelError
from hopd.model import LanguageModel
from hopd.model.loading import resolve
from hopd.rollout import NativeEngine, Sampling, Stretch
from tests.model.architectures import QUICKSTART, tiny
from tests.rollout.native.test_decoder import plain_log_probs, ragged
from tests.rollout.native.test_extend import begun

# Keys and values of unlike widths, made of latents; states instead of keys; a mask by position in the cache; one for
# each head. transformers chooses the attention: most of them get grouped attention.
KINDS = ["deepseek_v3", "mamba", "mamba2", "falcon_mamba", "bamba", "gpt_neo", "gpt_oss"]
if "minicpm3" in CONFIG_MAPPING:
    KINDS += ["minicpm3", "doge"]  # the first release with the one is later than that whose other looked ahead


def model_of(kind, dtype=torch.float32):
    tokenizer = AutoTokenizer.from_pretrained(str(resolve(QUICKSTART)))
    return LanguageModel(tiny(kind).to(dtype), tokenizer, kind)


@pytest.mark.filterwarnings("ignore::UserWarning:transformers")
@pytest.mark.parametrize("kind", KINDS)
def test_rollouts_have_the_log_probs_of_a_whole_pass(kind):
    """Prompts are ragged, and rollouts go on after a horizon."""
    model = model_of(kind)
    engine = NativeEngine(model)
    first = engine.extend([Stretch(rollout, 9) for rollout in begun(ragged(4), samples=2)], Sampling())
    further = engine.extend([Stretch(r, 18) for r in first if r.finish.value == "horizon"], Sampling())
    assert further
    for rollout in (*first, *further):
        torch.testing.assert_close(rollout.log_probs, plain_log_probs(model, rollout), rtol=1e-3, atol=1e-3)
    assert len(engine.check(40)) == 1


def test_latent_attention_decodes_in_bf16():
    NativeEngine(model_of("deepseek_v3", torch.bfloat16)).check(40)


@pytest.mark.parametrize(
    ("kind", "says"),
    [("rwkv", "cannot be decoded by the native engine"), ("minimax", "MiniMax uses cache of its own")],
)
def test_a_model_that_decodes_otherwise_than_it_learns_is_refused(kind, says):
    with pytest.raises(ModelError, match=says) as caught:
        NativeEngine(model_of(kind)).check(40)
    assert "write rollout: {engine: {kind: vllm}}" in str(caught.value)
    assert len(str(caught.value)) <= 400
