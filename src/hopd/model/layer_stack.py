"""Finds where a model keeps its decoder layers."""

from torch import nn
from transformers import PreTrainedModel

from hopd.errors import ModelError


def layer_stack(model: PreTrainedModel, name: str, able: str) -> tuple[nn.Module, str]:
    """Returns the module that holds the list of the decoder's layers, and the list's name in it.

    Raises `ModelError` unless there is exactly one such list; the message says what hopd is `able` to do.
    """
    count = model.config.get_text_config().num_hidden_layers
    stacks = [
        (parent, child)
        for parent in model.modules()
        for child, module in parent.named_children()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(stacks) != 1:
        raise ModelError(f"{name} has {len(stacks)} stacks of {count} layers; hopd can {able}")
    return stacks[0]
