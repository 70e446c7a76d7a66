"""What makes one token a row fast on a CPU: attention as grouped matrix products, and weights in oneDNN's own layout.

It is put in place for the time of a rollout only. On a GPU nothing is changed.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from hopd.attention import GROUPED, attention_of, can_choose_attention
from hopd.model import LanguageModel
from hopd.products import Projection, for_decoding, packs, replaced_linears
from hopd.rollout.cache import attends_everywhere


@contextmanager
def decoding(model: LanguageModel, rows: int) -> Iterator[Projection]:
    """Until the block ends, `model` decodes about `rows` rows fast; gives the projection of its head, before
    `Head.shape`. The weights must not change meanwhile."""
    head = model.head
    with ExitStack() as stack:
        if groups_attention(model):
            usual = attention_of(model)
            model.model.set_attn_implementation(GROUPED[usual])
            stack.callback(model.model.set_attn_implementation, usual)
        if not decodes_packed(model):
            yield head.project
            return
        stack.enter_context(replaced_linears(model.backbone, partial(for_decoding, rows=rows)))
        yield for_decoding(head.weight, head.bias, rows)


def groups_attention(model: LanguageModel) -> bool:
    """Whether one query a row goes to `grouped_attention`."""
    return model.device.type == "cpu" and can_choose_attention(model) and attends_everywhere(model.config)


def decodes_packed(model: LanguageModel) -> bool:
    """Whether a copy of its weights is packed for each rollout."""
    return model.device.type == "cpu" and packs(model.model.dtype)


def decoding_note(model: LanguageModel) -> str:
    """A sentence for people: what one token a row is computed with."""
    dtype = str(model.model.dtype).removeprefix("torch.")
    if model.device.type != "cpu":
        return f"decoding: {dtype} on {model.device}, the model's own attention ({attention_of(model)})"
    grouped = groups_attention(model)
    attention = (
        "grouped attention" if grouped else f"the model's own attention ({attention_of(model)}), which is slower"
    )
    return f"decoding: {dtype}, {attention}, weights {'packed' if decodes_packed(model) else 'as they are'}"
