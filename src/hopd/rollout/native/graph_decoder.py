"""Decodes one token a sequence through a model of Llama's architecture on a GPU, by one CUDA graph a token.

A token takes hundreds of small kernels, which a CPU launches several times more slowly than a GPU runs them. A graph is
recorded once and then launched as a whole. It holds addresses, so it is recorded again when the cache has moved: after
it has grown, and after finished sequences were dropped. It knows nothing of sampling, stop tokens or the vocabulary
head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding, linear, rms_norm, silu
from transformers.cache_utils import Cache

from hopd.compute.attention import fused_grouped_attention
from hopd.model import LanguageModel
from hopd.rollout.native.decoder import has_llamas_shape

Stored = Sequence[tuple[Float[Tensor, "R G K W"], Float[Tensor, "R G K W"]]]
"""Names the keys and values of each layer."""


@dataclass(frozen=True)
class _Layer:
    before_attention: Tensor
    qkv: tuple[Tensor, Tensor | None]
    head_norms: tuple[Tensor, Tensor, float] | None
    output: Any
    before_mlp: Tensor
    gate: Any
    up: Any
    down: Any


@dataclass(frozen=True)
class _Inputs:
    """Holds the inputs that change from token to token, always at the addresses where a graph reads them."""

    tokens: Int[Tensor, " R"]
    cos: Float[Tensor, "R W"]
    sin: Float[Tensor, "R W"]
    first: Int[Tensor, " R"]
    place: Int[Tensor, " 1"]

    def cloned(self) -> "_Inputs":
        return _Inputs(*(getattr(self, field.name).clone() for field in fields(self)))

    def copy_from(self, others: "_Inputs") -> None:
        for field in fields(self):
            getattr(self, field.name).copy_(getattr(others, field.name))


class GraphDecoder:
    """Decodes as `Decoder` does. It reads the model's own weights, except for a joined copy of the projections to
    queries, keys and values: they must not change while it is in use. With `graph`, the default on a GPU, it records a
    graph; otherwise the same operations run one by one."""

    def __init__(self, model: LanguageModel, graph: bool | None = None):
        backbone: Any = model.backbone
        attention = backbone.layers[0].self_attn
        self.layers = [_read(layer) for layer in backbone.layers]
        self.embedding: Tensor = backbone.embed_tokens.weight
        self.norm, self.eps = backbone.norm.weight, backbone.norm.variance_epsilon
        self.scale, self.width, self.heads = attention.scaling, attention.head_dim, model.config.num_attention_heads
        self.graph = model.device.type == "cuda" if graph is None else graph
        self._rotary = backbone.rotary_emb
        self._addresses: list[int] = []
        self._inputs: _Inputs | None = None
        self._replay: Callable[[], Tensor] | None = None

    def angles(self, length: int) -> tuple[Float[Tensor, "K W"], Float[Tensor, "K W"]]:
        """Returns cosines and sines of all positions of a sequence of this length, the first half of the sines negated:
        a head is rotated as x · cos + (x with its halves exchanged) · sin."""
        positions = torch.arange(length, device=self.embedding.device)[None]
        cos, sin = self._rotary(self.embedding[:1, None], positions)
        first, second = sin[0].chunk(2, dim=-1)
        return cos[0], torch.cat([-first, second], dim=-1)

    def hidden(
        self,
        tokens: Int[Tensor, " R"],
        angles: tuple[Float[Tensor, "R W"], Float[Tensor, "R W"]],
        cache: Cache,
        first: Int[Tensor, " R"],
    ) -> Float[Tensor, "R D"]:
        """Returns the last hidden state of one more token a sequence, in memory that the next call may overwrite;
        sequence r attends to its cache from `first[r]` on."""
        growing: Sequence[Any] = cache.layers
        place = torch.full((1,), cache.get_seq_length(), device=tokens.device)
        given, stored = _Inputs(tokens, *angles, first, place), [layer.extend(1) for layer in growing]
        if not self.graph:
            return self._step(given, stored)
        addresses = [len(tokens), stored[0][0].shape[2], *(part.data_ptr() for pair in stored for part in pair)]
        if addresses != self._addresses:  # the first token runs eagerly: it warms up the kernels that are recorded next
            self._addresses, self._inputs, self._replay = addresses, given.cloned(), None
            return self._step(self._inputs, stored)
        assert self._inputs is not None
        self._inputs.copy_from(given)
        if self._replay is None:
            inputs = self._inputs
            self._replay = recorded(lambda: self._step(inputs, stored))
        return self._replay()

    def _step(self, at: _Inputs, stored: Stored) -> Float[Tensor, "R D"]:
        """Computes one token. A recording must neither ask the device for a value nor depend on a CPU value that
        changes."""
        x = embedding(at.tokens, self.embedding)
        places = torch.arange(stored[0][0].shape[2], device=x.device)
        seen = (places >= at.first[:, None]) & (places <= at.place)
        mask = torch.where(seen, 0.0, float("-inf")).to(x.dtype)[:, None, None]
        for layer, (keys, values) in zip(self.layers, stored, strict=True):
            h = _norm(x, layer.before_attention, self.eps)
            x = x + layer.output(self._mixed(layer, h, at, keys, values, mask))
            h = _norm(x, layer.before_mlp, self.eps)
            gate, up = layer.gate(h), layer.up(h)
            x = x + layer.down(silu(gate) * up)
        return _norm(x, self.norm, self.eps)

    def _mixed(
        self, layer: _Layer, h: Float[Tensor, "R D"], at: _Inputs, keys: Tensor, values: Tensor, mask: Tensor
    ) -> Float[Tensor, "R HW"]:
        """Computes one layer's attention, and writes its key and value into the cache."""
        heads, groups = self.heads, keys.shape[1]
        qkv = linear(h, *layer.qkv).view(len(h), heads + 2 * groups, self.width)
        qk, v = torch.split(qkv, [heads + groups, groups], dim=1)
        if layer.head_norms is not None:
            of_query, of_key, eps = layer.head_norms
            q, k = torch.split(qk, [heads, groups], dim=1)
            qk = torch.cat([_norm(q, of_query, eps), _norm(k, of_key, eps)], dim=1)
        turned = qk * at.cos[:, None] + qk.roll(self.width // 2, -1) * at.sin[:, None]
        q, k = torch.split(turned, [heads, groups], dim=1)
        keys.index_copy_(2, at.place, k[:, :, None])
        values.index_copy_(2, at.place, v[:, :, None])
        return fused_grouped_attention(q, keys, values, mask, self.scale).flatten(1)


def decodes_by_graph(model: LanguageModel) -> bool:
    """Tells whether a `GraphDecoder` can replace the model's own modules. The model must be on the current GPU: torch
    records there."""
    device = model.device
    if device.type != "cuda" or device.index not in (None, torch.cuda.current_device()):
        return False
    one_dtype = len({parameter.dtype for parameter in model.backbone.parameters()}) == 1
    return one_dtype and has_llamas_shape(model)


def recorded(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Records `step` as a CUDA graph. Returns a function that replays it on the tensors of the recording."""
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the GPU meanwhile: NCCL's watchdog asks it for events.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        made = step()

    def replay() -> Tensor:
        graph.replay()
        return made

    return replay


def _norm(x: Float[Tensor, "*B D"], weight: Float[Tensor, " D"], eps: float) -> Float[Tensor, "*B D"]:
    """Returns weight · x / rms(x), rounded before it is scaled, as in transformers: in bf16 a fused norm would differ
    from the learner's in its last bits, and the rollouts with it."""
    return weight * rms_norm(x, x.shape[-1:], None, eps)


def _read(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    biases = [part.bias.detach() for part in projections if part.bias is not None]
    norms = None
    if (query := getattr(attention, "q_norm", None)) is not None:
        norms = query.weight, attention.k_norm.weight, query.variance_epsilon
    return _Layer(
        before_attention=layer.input_layernorm.weight,
        qkv=(torch.cat([part.weight.detach() for part in projections]), torch.cat(biases) if biases else None),
        head_norms=norms,
        output=attention.o_proj,
        before_mlp=layer.post_attention_layernorm.weight,
        gate=mlp.gate_proj,
        up=mlp.up_proj,
        down=mlp.down_proj,
    )
