"""Adds low-rank adapters to a model's matrices (LoRA, by peft): they are trained, the base weights never change.

Adapters are plain modules inside the model, so rollouts, losses and checkpoints need no code for them.
"""

import warnings
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
BASE = "base_layer"  # peft's name for the module inside an adapted one
# Settings of peft with which adapters are more than a product of two matrices.
OTHERS = "use_dora", "modules_to_save", "trainable_token_indices", "lora_bias", "use_qalora", "alora_invocation_tokens"


def add_adapters(model: LanguageModel, rank: int, alpha: int, targets: str | Sequence[str], seed: int) -> None:
    """Adds new adapters, which change nothing yet: B is zero, and A is a function of the seed.

    A weight W then acts as W + (alpha / rank) · B A (arXiv:2106.09685). `targets` are names of linear layers, or of
    parameters such as the experts of a mixture, which are one tensor, or "all-linear", which excludes the vocabulary
    head. Raises `ModelError` if peft is missing, if nothing has such a name, or if an embedding or the head is named.
    """
    _check_installed()
    from peft import LoraConfig

    tensors = [] if isinstance(targets, str) else [name for name in targets if _names_a_parameter(model.model, name)]
    chosen = targets if isinstance(targets, str) else [name for name in targets if name not in tensors]
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=chosen, target_parameters=tensors or None, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):  # peft draws on the CPU, wherever the model is
        torch.default_generator.manual_seed(seed)
        _inject(model, config)
    if not isinstance(targets, str):
        _check_all_named(model, config)
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
    extra = [name for name in OTHERS if getattr(config, name, None)]
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
    layers = {id(adapted_parameter(layer)): layer for _, layer in adapter_layers(model)}
    merged = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if ".lora_" not in name:
            plain = name.replace(f".{BASE}", "")  # once for each of the experts' tensors, whose adapters are nested
            layer, tensor = layers.get(id(tensor)), tensor.detach()
            merged[plain] = tensor + layer.get_delta_weight(NAME).to(tensor.dtype) if layer else tensor
    return merged


def adapted_parameter(layer: Any) -> Tensor:
    """Returns the matrix, or the experts' matrices in one tensor, that a layer's adapters change."""
    parameter: Tensor = getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"))
    return parameter


def merge(model: LanguageModel) -> None:
    """Adds the adapters to the weights for good: the model is plain afterwards."""
    weights = merged_state_dict(model.model)
    for name, layer in reversed(list(adapter_layers(model.model))):  # inner ones first
        parent, _, child = name.rpartition(".")
        setattr(model.model.get_submodule(parent), child, layer.base_layer)
    model.model.load_state_dict(weights)
    model.model.requires_grad_(True)
    model.model._hf_peft_config_loaded = False
    del model.model.peft_config


def describe_adapters(model: LanguageModel) -> list[str]:
    """Returns a note on what of a mixture of experts is adapted, none for another model."""
    if not model.experts:
        return []
    adapted = {id(adapted_parameter(layer)) for _, layer in adapter_layers(model.model)}
    matrices = dict(model.backbone.named_parameters())
    experts = any(id(p) in adapted for name, p in matrices.items() if p.dim() == 3 or ".experts." in name)
    shape = (model.experts, model.config.hidden_size)
    router = any(id(p) in adapted for p in matrices.values() if p.shape == shape)
    both = "the experts and the router" if experts else "neither the experts nor the router"
    one = "the experts, and not the router" if experts else "the router, and not the experts"
    return [f"lora: of the mixture it adapts {both if experts == router else one}"]


def _names_a_parameter(model: nn.Module, target: str) -> bool:
    """Tells whether a target is no module but a tensor of matrices, such as transformers' experts."""
    modules = any(_ends(name, target) for name, _ in model.named_modules())
    return not modules and any(_ends(name, target) and p.dim() in (2, 3) for name, p in model.named_parameters())


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _check_all_named(model: LanguageModel, config: Any) -> None:
    """Raises `ModelError` for a target that nothing has: peft only minds if no target is found. The targets are those
    of `config`, where peft has replaced the names that experts had in earlier releases of transformers."""
    adapted = [
        name
        for layer, module in adapter_layers(model.model)
        for plain in [layer.replace(f".{BASE}", "")]
        for name in (plain, f"{plain}.{getattr(module, 'parameter_name', 'weight')}")
    ]
    for target in sorted({*config.target_modules, *(config.target_parameters or ())}):
        if not any(_ends(name, target) for name in adapted):
            raise ModelError(f"lora.targets names {target!r}, and {model.name} has no such layer; remove it")


def _inject(model: LanguageModel, config: Any) -> None:
    try:
        with warnings.catch_warnings():
            # peft warns of conversions that it makes itself, of experts' names and of transposed matrices.
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="peft")
            warnings.filterwarnings("ignore", message="fan_in_fan_out", module="peft")
            model.model.add_adapter(config, NAME)
    except ValueError as error:  # peft lists the names that it looked for
        raise ModelError(f"{model.name} cannot have these adapters: {' '.join(str(error).split())}") from error
    _check_targets(model)


def _check_targets(model: LanguageModel) -> None:
    """Raises `ModelError` for adapters that the model would not compute, or that cannot be merged."""
    for name, layer in adapter_layers(model.model):
        plain, inside = name.replace(f".{BASE}", ""), layer.get_base_layer()
        if layer is model.output_layer:
            raise ModelError("lora.targets names the vocabulary head, which hopd computes without adapters; remove it")
        if isinstance(inside, nn.Embedding):
            raise ModelError(f"lora.targets names the embedding {plain}, which may be tied to the head; remove it")
        if layer.lora_variant or not {"lora_A", "lora_B"} >= {n.split(".")[0] for n, _ in _own_parameters(layer)}:
            raise ModelError(f"the adapters of {plain} are not plain LoRA, which is all that hopd supports")
    ids = torch.tensor([[1, 2]], device=model.device) % model.head.vocabulary
    try:
        with torch.no_grad():
            model.hidden(ids)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:  # such as a router that returns a tuple
        raise ModelError(
            f"{model.name} cannot compute with these adapters ({type(error).__name__}: {error}); name the layers in "
            "lora.targets, such as [q_proj, k_proj, v_proj, o_proj]"
        ) from error


def _own_parameters(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, p) for name, p in layer.named_parameters() if not name.startswith(BASE))


def _check_installed() -> None:
    if find_spec("peft") is None:
        raise ModelError("adapters need the package peft: pip install 'hopd[lora]'")
