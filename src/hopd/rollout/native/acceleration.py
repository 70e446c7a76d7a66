"""Chooses the fastest way to decode one token a sequence, and installs it for the time of a rollout.

Models with Llama's architecture decode by a `Decoder` on a CPU and a `GraphDecoder` on a GPU. Others keep their
modules, with grouped attention where transformers' registry allows it, and on a CPU with weights in oneDNN's own
layout.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from hopd.compute import kernels
from hopd.compute.attention import GROUPED
from hopd.compute.layers import fast_layers
from hopd.compute.products import Projection, for_decoding, packs, replaced_linears
from hopd.model import LanguageModel
from hopd.model.attention_choice import attention_of, can_choose_attention
from hopd.rollout.native.cache import attends_everywhere
from hopd.rollout.native.decoder import Decoder, decodes_by_kernels
from hopd.rollout.native.graph_decoder import GraphDecoder, decodes_by_graph

TokenDecoder = Decoder | GraphDecoder


@contextmanager
def decoding(model: LanguageModel, rows: int) -> Iterator[tuple[Projection, TokenDecoder | None]]:
    """Prepares `model` to decode about `rows` sequences at once, until the block ends.

    Yields the projection of its vocabulary head, to be followed by `Head.shape`, and the decoder that replaces its
    modules, None if they stay. The weights must not change meanwhile."""
    head = model.head
    with ExitStack() as stack:
        if decodes_by_graph(model):
            yield head.project, GraphDecoder(model)
            return
        if model.device.type == "cpu":
            stack.enter_context(fast_layers(model.backbone))
        if decodes_by_kernels(model):
            yield for_decoding(head.weight, head.bias, rows), Decoder(model, rows)
            return
        if groups_attention(model):
            usual = attention_of(model)
            model.model.set_attn_implementation(GROUPED[usual])
            stack.callback(model.model.set_attn_implementation, usual)
        if not decodes_packed(model):
            yield head.project, None
            return
        stack.enter_context(replaced_linears(model.backbone, partial(for_decoding, rows=rows)))
        yield for_decoding(head.weight, head.bias, rows), None


def groups_attention(model: LanguageModel) -> bool:
    """Tells whether decoding can use `grouped_attention`."""
    return can_choose_attention(model) and attends_everywhere(model.config)


def decodes_packed(model: LanguageModel) -> bool:
    """Tells whether a copy of its weights is packed for each rollout."""
    return model.device.type == "cpu" and packs(model.model.dtype)


def decoding_note(model: LanguageModel) -> str:
    """Describes, for people, how a token is computed."""
    dtype = str(model.model.dtype).removeprefix("torch.")
    grouped = groups_attention(model)
    attention = "grouped attention" if grouped else f"the model's own attention ({attention_of(model)}), slower"
    if decodes_by_graph(model):
        return f"decoding: {dtype} on {model.device}, one CUDA graph a token"
    if model.device.type != "cpu":
        return f"decoding: {dtype} on {model.device}, layer by layer, {attention}"
    if decodes_by_kernels(model):
        return f"decoding: {dtype}, weights packed, {kernels.note()}"
    weights = "packed" if decodes_packed(model) else "as they are"
    return f"decoding: {dtype}, {attention}, weights {weights}, {kernels.note()}"
