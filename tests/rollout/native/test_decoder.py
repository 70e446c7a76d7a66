"""Checks which models decode by kernels, and that they decode the same as their modules. Others: `test_engine.py`."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hopd.compute import kernels
from hopd.compute.layers import fast_layers
from hopd.model import LanguageModel
from hopd.model.loading import resolve
from hopd.rollout import NativeEngine, Prompt, Sampling
from hopd.rollout.native.decoder import decodes_by_kernels

pytestmark = pytest.mark.skipif(kernels.compiled() is None, reason="the kernels need a C compiler, cc, on Linux")
FAMILY = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "llama with scaled rope": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
}
OTHERS = {
    "a window": ("mistral", {"sliding_window": 8}),
    "heads of 8": ("llama", {"head_dim": 8}),
    "other angles": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
    "another activation": ("llama", {"hidden_act": "gelu"}),
    "another family": ("gemma2", {}),
}


def tiny(kind, options, dtype=torch.float32):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    size |= {"intermediate_size": 48, "head_dim": 32, "vocab_size": 48, "eos_token_id": 1}
    config = AutoConfig.for_model(kind.split()[0], **size | options)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for parameter in model.parameters():
        parameter.data.mul_(3.0) if parameter.dim() > 1 else parameter.data.add_(0.1 * torch.randn_like(parameter))
    return LanguageModel(model, AutoTokenizer.from_pretrained(str(resolve("package:hopd/quickstart/student"))), kind)


def ragged(count=6):
    return [Prompt(i, torch.arange(3 + i, 5 + 3 * i) % 45 + 3) for i in range(count)]


def plain_log_probs(model, rollout):
    ids = torch.cat([rollout.prompt.ids, rollout.ids])[None]
    with torch.no_grad():
        logits = model.model(input_ids=ids).logits[0, len(rollout.prompt.ids) - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, rollout.ids[:, None])[:, 0]


@pytest.mark.parametrize("kind", FAMILY)
def test_rollouts_are_those_of_the_modules(kind):
    """The cache grows, a prompt has several samples, and sequences end at different lengths."""
    model = tiny(kind, FAMILY[kind])
    assert decodes_by_kernels(model)
    for rollout in NativeEngine(model, rows=5).sample(ragged(), 90, Sampling(0.0), 0):
        ids = rollout.prompt.ids[None]
        expected = model.model.generate(ids, max_new_tokens=90, do_sample=False, eos_token_id=1)[0, ids.shape[1] :]
        assert rollout.ids.tolist() == expected.tolist()
    for rollout in NativeEngine(model).sample(ragged(), 90, Sampling(), 0, samples=3):
        torch.testing.assert_close(rollout.log_probs, plain_log_probs(model, rollout), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", FAMILY)
def test_log_probs_in_bf16_are_near_a_recomputation(kind):
    """The bound is 0.1 nats at any token and 0.02 in the mean, for models whose logits range over several nats."""
    model = tiny(kind, FAMILY[kind], torch.bfloat16)
    assert decodes_by_kernels(model)
    differences = torch.cat(
        [
            (rollout.log_probs - plain_log_probs(model, rollout)).abs()
            for rollout in NativeEngine(model).sample(ragged(), 60, Sampling(), 0, samples=2)
        ]
    )
    assert float(differences.max()) < 0.1
    assert float(differences.mean()) < 0.02


@pytest.mark.parametrize("why", OTHERS)
def test_models_that_are_not_of_that_shape_keep_their_modules(why):
    assert not decodes_by_kernels(tiny(*OTHERS[why]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_through_fast_layers_are_those_of_the_modules(dtype):
    model, ids = tiny("qwen3", {}, dtype), torch.arange(24).view(2, 12) % 48

    def gradients():
        model.model.zero_grad()
        model.head.logits(model.hidden(ids)).log_softmax(-1)[..., 7].sum().backward()
        return {name: parameter.grad.float() for name, parameter in model.model.named_parameters()}

    expected = gradients()
    with fast_layers(model.backbone):
        replaced = [type(m).__name__ for m in model.model.modules() if "forward" in vars(m)]
        got = gradients()
    assert {"Qwen3RMSNorm", "Qwen3MLP"} <= set(replaced)
    for name, wanted in expected.items():
        within = 1e-4 if dtype == torch.float32 else 5e-2
        assert float((got[name] - wanted).norm()) <= within * float(wanted.norm()), name
