"""Adds low-rank adapters to a model's linear layers (LoRA, by peft): they are trained, the base weights never change.

Adapters are plain modules inside the model, so rollouts, losses and checkpoints need no code for them.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from hopd.errors import ModelError
from hopd.model.language_model import LanguageModel

NAME = "default"  # peft's name for the only adapters that a model has here
WEIGHTS = "adapter_model.safetensors"


def add_adapters(model: LanguageModel, rank: int, alpha: int, targets: str | Sequence[str], seed: int) -> None:
    """Adds new adapters, which change nothing yet: B is zero, and A is a function of the seed.

    A weight W then acts as W + (alpha / rank) · B A (arXiv:2106.09685). `targets` are names of linear layers, or
    "all-linear", which excludes the vocabulary head. Raises `ModelError` if peft is missing, if no layer has such a
    name, or if the head is named.
    """
    _check_installed()
    from peft import LoraConfig

    chosen = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):  # peft draws on the CPU, wherever the model is
        torch.default_generator.manual_seed(seed)
        _inject(model, config)
    where = Path(model.name)
    config.base_model_name_or_path = str(where.absolute()) if where.exists() else model.name


def load_adapters(model: LanguageModel, directory: Path) -> None:
    """Adds adapters that peft or hopd saved to their base model. Adapters of the base itself are merged first.

    Raises `ModelError` if peft is missing, for adapters that are not plain LoRA, and for weights that do not fit.
    """
    _check_installed()
    from peft import PeftConfig

    config: Any = PeftConfig.from_pretrained(str(directory))
    kind = getattr(config.peft_type, "value", config.peft_type)
    extra = [name for name in ("use_dora", "modules_to_save", "trainable_token_indices") if getattr(config, name, None)]
    if kind != "LORA" or config.bias != "none" or extra:
        what = ", ".join(extra) or (f"bias {config.bias}" if kind == "LORA" else kind)
        raise ModelError(
            f"{directory} holds adapters with {what}; hopd supports plain LoRA only: merge them into their base"
        )
    if has_adapters(model.model):
        merge(model)
    config.inference_mode = False
    base = config.base_model_name_or_path
    _inject(model, config)
    config.base_model_name_or_path = base  # transformers overwrites it with the base's current path
    try:
        saved = load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read the adapters of {directory}: {error}") from error
    mine = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": parameter
        for name, parameter in model.model.named_parameters()
        if ".lora_" in name
    }
    wrong = [
        k for k in mine.keys() | saved.keys() if k not in mine or k not in saved or mine[k].shape != saved[k].shape
    ]
    if wrong:
        raise ModelError(
            f"the adapters of {directory} do not fit {model.name}: {len(wrong)} weights differ in name or shape, "
            f"{min(wrong)} for example"
        )
    with torch.no_grad():
        for key, parameter in mine.items():
            parameter.copy_(saved[key])


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields the layers with adapters and their names; none without adapters or without peft."""
    if find_spec("peft") is None:
        return
    from peft.tuners.lora import LoraLayer

    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def has_adapters(model: nn.Module) -> bool:
    """Tells whether any layer has adapters."""
    return any(True for _ in adapter_layers(model))


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Turns the adapters off until the block ends: the model is its base."""
    with ExitStack() as stack:
        for _, layer in adapter_layers(model):
            layer.forward = layer.base_layer.__call__
            stack.callback(delattr, layer, "forward")
        yield


@torch.no_grad()
def merged_state_dict(model: PreTrainedModel) -> dict[str, Tensor]:
    """Returns the state dict of the plain model that computes the same as `model` with its adapters.

    Matrices with adapters are new tensors, all others are the model's own.
    """
    layers = dict(adapter_layers(model))
    merged = {}
    for name, tensor in model.state_dict().items():
        layer, _, inner = name.partition(".base_layer.")
        if not inner and ".lora_" in name:
            continue
        adapted = layer in layers and inner == "weight"
        merged[f"{layer}.{inner}" if inner else name] = (
            tensor + layers[layer].get_delta_weight(NAME).to(tensor.dtype) if adapted else tensor
        )
    return merged


def merge(model: LanguageModel) -> None:
    """Adds the adapters to the weights for good: the model is plain afterwards."""
    weights = merged_state_dict(model.model)
    for name, layer in list(adapter_layers(model.model)):
        parent, _, child = name.rpartition(".")
        setattr(model.model.get_submodule(parent), child, layer.base_layer)
    model.model.load_state_dict(weights)
    model.model.requires_grad_(True)
    model.model._hf_peft_config_loaded = False
    del model.model.peft_config


def _inject(model: LanguageModel, config: Any) -> None:
    try:
        model.model.add_adapter(config, NAME)
    except ValueError as error:  # peft lists the names that it looked for
        raise ModelError(f"{model.name} cannot have these adapters: {' '.join(str(error).split())}") from error
    if any(layer is model.output_layer for _, layer in adapter_layers(model.model)):
        raise ModelError("lora.targets names the vocabulary head, which hopd computes without adapters; remove it")


def _check_installed() -> None:
    if find_spec("peft") is None:
        raise ModelError("adapters need the package peft: pip install 'hopd[lora]'")
