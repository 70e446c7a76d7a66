"""Decodes one token a sequence through a model of Llama's architecture: packed matrix products, with kernels between.

It reads the model's weights and leaves its modules alone. With few sequences or a small model, the modules' Python and
their passes over small tensors take longer than the products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from hopd.compute import kernels
from hopd.compute.layers import is_rms_norm, is_swiglu
from hopd.compute.products import Projection, for_decoding, packs
from hopd.model import LanguageModel

FAMILY = {"llama", "mistral", "qwen2", "qwen3"}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
ROPES = {"default", "linear", "llama3", "yarn"}  # whose angles depend on the position alone


@dataclass(frozen=True)
class _Layer:
    before_attention: Tensor
    qkv: Projection
    query_norm: tuple[Tensor, Tensor, float] | None
    output: Projection
    before_mlp: Tensor
    gate_up: Projection
    down: Projection


class Decoder:
    """Decodes in place of the model's modules on a CPU. `rows` is the number of sequences that the weights are packed
    for; the weights must not change while it is in use."""

    def __init__(self, model: LanguageModel, rows: int):
        backbone: Any = model.backbone
        self.layers = [_read(layer, rows) for layer in backbone.layers]
        self.embedding: Tensor = backbone.embed_tokens.weight
        self.norm, self.eps = backbone.norm.weight, backbone.norm.variance_epsilon
        self.scale = backbone.layers[0].self_attn.scaling
        self._rotary = backbone.rotary_emb

    def angles(self, length: int) -> tuple[Float[Tensor, "K W"], Float[Tensor, "K W"]]:
        """Returns cosines and sines of all positions of a sequence of this length."""
        cos, sin = self._rotary(self.embedding[:1, None], torch.arange(length)[None])
        return cos[0], sin[0]

    def hidden(
        self,
        tokens: Int[Tensor, " R"],
        angles: tuple[Float[Tensor, "R W"], Float[Tensor, "R W"]],
        cache: Cache,
        first: Int[Tensor, " R"],
    ) -> Float[Tensor, "R D"]:
        """Returns the last hidden state of one more token a sequence; sequence r attends to its cache from `first[r]`
        on."""
        x, added, end = self.embedding[tokens], None, cache.get_seq_length()
        growing: Sequence[Any] = cache.layers
        for layer, cached in zip(self.layers, growing, strict=True):
            qkv = layer.qkv(kernels.norm(x, layer.before_attention, self.eps, added))
            keys, values = cached.extend(1)
            mixed = kernels.attend(qkv, keys, values, *angles, first, end, self.scale, layer.query_norm)
            gate_up = layer.gate_up(kernels.norm(x, layer.before_mlp, self.eps, layer.output(mixed)))
            added = layer.down(kernels.swiglu(*gate_up.chunk(2, dim=-1)))
        return kernels.norm(x, self.norm, self.eps, added)


def decodes_by_kernels(model: LanguageModel) -> bool:
    """Tells whether a `Decoder` can replace the model's own modules."""
    if model.device.type != "cpu" or not packs(model.model.dtype) or not has_llamas_shape(model):
        return False
    return kernels.support(*model.backbone.parameters()) and kernels.support_head_width(model.head_width)


def has_llamas_shape(model: LanguageModel) -> bool:
    """Tells whether all its layers compute what Llama's do, over all positions, with plain linear layers."""
    config = model.config
    if config.model_type not in FAMILY:
        return False
    layers: Sequence[Any] = model.backbone.layers  # type: ignore[assignment]
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and not (config.model_type == "mistral" and config.sliding_window)
        and rope.get("rope_type", "default") in ROPES
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and all(is_swiglu(layer.mlp) and is_rms_norm(layer.input_layernorm) for layer in layers)
        # Adapters replace plain linear layers; a sharded layer has hooks.
        and all(type(m) is nn.Linear for layer in layers for m in _linears(layer))
        and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
    )


def _linears(layer: Any) -> list[nn.Module]:
    mlp = layer.mlp
    return [*(getattr(layer.self_attn, name) for name in PROJECTIONS), mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _read(layer: Any, rows: int) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    norms = None
    if (query := getattr(attention, "q_norm", None)) is not None:
        norms = query.weight, attention.k_norm.weight, query.variance_epsilon
    return _Layer(
        before_attention=layer.input_layernorm.weight,
        qkv=_joined(attention.q_proj, attention.k_proj, attention.v_proj, rows=rows),
        query_norm=norms,
        output=_joined(attention.o_proj, rows=rows),
        before_mlp=layer.post_attention_layernorm.weight,
        gate_up=_joined(mlp.gate_proj, mlp.up_proj, rows=rows),
        down=_joined(mlp.down_proj, rows=rows),
    )


def _joined(*linears: nn.Linear, rows: int) -> Projection:
    """Joins linear layers with the same input into one product with concatenated outputs."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    return for_decoding(weight, torch.cat(biases) if biases else None, rows)
