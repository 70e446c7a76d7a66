"""Shards a language model over the processes, layer by layer, with torch's FSDP2."""

import warnings
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from hopd.model.language_model import LanguageModel
from hopd.model.layer_stack import layer_stack
from hopd.model.sharding import Sharding
from hopd.processes import Processes


def shard(model: LanguageModel, processes: Processes, bf16: bool) -> None:
    """Shards the fp32 weights of `model` over the processes. They stay fp32; with `bf16`, passes use bf16 copies.

    Gradients are summed over the processes, in fp32, not averaged: each process's loss is its part of one mean. Raises
    `ModelError` unless the model has exactly one stack of layers.
    """
    # Nobody writes to hidden states in place, of which torch warns in every process.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    mesh = init_device_mesh(processes.device.type, (processes.size,))
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32)
    units: list[Any] = [*_layers(model), model.model]
    # The vocabulary head is used outside the model's own forward pass; the last unit keeps it gathered until backward.
    whole: Any = model.model  # it gets an attribute that its class does not know
    whole.hopd_backbone = model.backbone.forward
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=precision)
        unit.set_gradient_divide_factor(1.0)
        if hasattr(unit, "set_force_sum_reduction_for_comms"):  # torch before 2.9 divides by the factor above, 1
            unit.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(whole, "hopd_backbone")
    model.forward = whole.hopd_backbone
    model.sharding = Sharding(units)


def _layers(model: LanguageModel) -> list[nn.Module]:
    parent, child = layer_stack(model.model, model.name, "shard one stack only: write training.sharding: none")
    return list(getattr(parent, child))
