"""Tests adapters of mixtures of experts, whose experts are one tensor, and of other layers that are no plain linear."""

import json
from typing import Any

import pytest
import torch

from hopd.errors import ModelError
from hopd.model import load
from hopd.model.adapters import add_adapters, describe_adapters, merge, merged_state_dict, without_adapters
from tests.model.architectures import KINDS, save, tiny

IDS = torch.arange(1, 25).view(2, 12)
BOTH = "the experts and the router"
ADAPTED = {
    "mixtral": ("all-linear", BOTH),
    "qwen3_moe": ("all-linear", BOTH),
    "olmoe": ("all-linear", BOTH),
    "deepseek_v3": ("all-linear", BOTH),
    "qwen2_moe": ("all-linear", "neither the experts nor the router"),
    "gpt_oss": (["gate_up_proj", "down_proj", "q_proj"], "the experts, and not the router"),
    "gpt2": ("all-linear", None),
    "phi3": (["qkv_proj", "gate_up_proj"], None),
    "llama": ("all-linear", None),
}
SOME_TARGETS = {
    ("mixtral", ("w1", "w2", "w3")): "the experts, and not the router",
    ("mixtral", ("experts.gate_up_proj",)): "the experts, and not the router",
    ("mixtral", ("gate", "q_proj")): "the router, and not the experts",
    ("qwen2_moe", ("gate_up_proj", "gate.weight")): BOTH,
}


@torch.no_grad()
def logits(model):
    return model.model(IDS).logits


def adapted(place, kind, targets):
    """Returns a model with adapters whose B is not zero."""
    model = load(save(tiny(kind), place))
    add_adapters(model, 4, 8, targets, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=generator)
    return model


@pytest.mark.parametrize(
    ("kind", "targets", "what"),
    [(kind, *case) for kind, case in ADAPTED.items()] + [(*case, what) for case, what in SOME_TARGETS.items()],
)
def test_merged_weights_are_those_of_the_plain_model_and_compute_the_same(tmp_path, kind, targets, what):
    model = adapted(tmp_path / "base", kind, targets)
    expected, base = logits(model), load(str(tmp_path / "base"))
    assert float((logits(base) - expected).abs().max()) > 0.1
    assert describe_adapters(model) == ([f"lora: of the mixture it adapts {what}"] if what else [])
    with without_adapters(model.model):
        assert torch.equal(logits(model), logits(base))

    weights = merged_state_dict(model.model)
    assert weights.keys() == base.model.state_dict().keys()
    model.model.save_pretrained(tmp_path / "adapters")
    model.tokenizer.save_pretrained(tmp_path / "adapters")
    reloaded = load(str(tmp_path / "adapters"))
    assert torch.equal(logits(reloaded), expected)
    merge(reloaded)
    base.model.load_state_dict(weights)
    base.model.save_pretrained(tmp_path / "merged")
    base.tokenizer.save_pretrained(tmp_path / "merged")
    for plain in (reloaded, base, load(str(tmp_path / "merged"))):
        assert not any("lora" in name or "base_layer" in name for name in plain.model.state_dict())
        torch.testing.assert_close(logits(plain), expected, rtol=1e-5, atol=1e-5)


def test_a_layer_that_two_places_share_is_merged_in_both(tmp_path):
    model = load(save(tiny("llama"), tmp_path / "base"))
    layers: Any = model.backbone.layers
    layers[1].self_attn.q_proj = layers[0].self_attn.q_proj
    layers[1].mlp = layers[0].mlp
    add_adapters(model, 4, 8, ["gate_proj", "down_proj"], seed=0)
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    expected = logits(model)
    merge(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "targets", "says"),
    [
        ("llama", ["embed_tokens"], "the embedding model.embed_tokens, which may be tied to the head; remove it"),
        ("llama", ["lm_head"], "names the vocabulary head"),
        ("llama", ["q_proj", "qv_proj"], "names 'qv_proj', and .* has no such layer"),
        ("mixtral", ["w1", "w2"], "Cannot convert PEFT target"),
        ("phimoe", "all-linear", "name the layers in lora.targets"),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused(tmp_path, kind, targets, says):
    model = load(save(tiny(kind), tmp_path / "base"))
    with pytest.raises(ModelError, match=says) as caught:
        add_adapters(model, 4, 8, targets, seed=0)
    assert len(str(caught.value)) <= 400


@pytest.mark.parametrize("change", [{"lora_bias": True}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}])
def test_adapters_of_another_kind_are_refused(tmp_path, change):
    model = adapted(tmp_path / "base", "llama", ["q_proj"])
    model.model.save_pretrained(tmp_path / "adapters")
    model.tokenizer.save_pretrained(tmp_path / "adapters")
    config = tmp_path / "adapters" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ModelError, match=f"holds adapters with {next(iter(change))}"):
        load(str(tmp_path / "adapters"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].keys() & {"num_experts", "num_local_experts"}])
def test_the_experts_of_every_family_are_counted(tmp_path, kind):
    assert load(save(tiny(kind), tmp_path)).experts == 4
