"""Makes tiny models of many architectures, as directories with the quickstart's tokenizer."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hopd.model.loading import resolve

QUICKSTART = "package:hopd/quickstart/student"
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZE |= {"intermediate_size": 48, "vocab_size": 48, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {**ROUTED, "head_dim": 8},
    "qwen2_moe": {**ROUTED, "shared_expert_intermediate_size": 16},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "phimoe": {"num_local_experts": 4},
    "deepseek_v3": {
        **ROUTED, **LATENT, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
    "minicpm3": {**LATENT, "num_key_value_heads": 4},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1},
    "falcon_mamba": {"state_size": 8},
    "bamba": {
        "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4, "window_size": 8},
    "minimax": {"num_local_experts": 4, "layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    "phi3": {},
    "gpt2": {"n_positions": 64},
    "llama": {"tie_word_embeddings": True},
}  # fmt: skip


def tiny(kind: str, **changes: Any) -> PreTrainedModel:
    """Returns a model of this architecture whose matrices are large enough for logits of several nats."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZE | KINDS.get(kind, {}) | changes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.mul_(3.0 if parameter.dim() > 1 else 1.0)
    return model


def save(model: PreTrainedModel, place: Path) -> str:
    """Writes the model and the quickstart's tokenizer, and returns the directory as a recipe names it."""
    model.save_pretrained(place)
    AutoTokenizer.from_pretrained(str(resolve(QUICKSTART))).save_pretrained(place)
    return str(place)
