"""Loads a model from a directory, a hub name, or a file of an installed package; with adapters, or fewer layers."""

import importlib.util
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hopd.errors import ModelError
from hopd.model.language_model import LanguageModel
from hopd.model.layer_stack import layer_stack
from hopd.model.quantisation import Quantisation, plain

PACKAGE = "package:"
ADAPTERS = "adapter_config.json"  # peft's file


def load(
    source: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    layers: Sequence[int] | None = None,
    trust_remote_code: bool = False,
    quantised: bool = False,
) -> LanguageModel:
    """Loads a model from a directory, a hub name, or a file of an installed package, `package:NAME/PATH`.

    Only safetensors and GGUF are read: neither can run code. `layers` keeps those layers, numbered from 0, and drops
    the others. From a directory of LoRA adapters it loads their base model and adds them. Quantised weights are made
    plain; with `quantised` they stay as they are where they can be used so, and cannot be trained. Raises `ModelError`
    if the model is missing, incomplete, no causal language model, or quantised in a way that cannot be undone.
    """
    path = resolve(source)
    if is_adapters(source):
        from hopd.model.adapters import load_adapters

        base = json.loads((path / ADAPTERS).read_text()).get("base_model_name_or_path")
        if not base:
            raise ModelError(f"the adapters of {source} do not name their base model (base_model_name_or_path)")
        adapted = load(base, dtype=dtype, device=device, layers=layers, trust_remote_code=trust_remote_code)
        load_adapters(adapted, path)
        adapted.name = source
        return adapted
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(path), "trust_remote_code": trust_remote_code}
    if path.suffix == ".gguf":
        where |= {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    with _explained(source), _quiet():
        quantisation = None if path.suffix == ".gguf" else Quantisation.of(where)
        if quantisation and quantised and (kept := _kept(where, quantisation, source, dtype, device, layers)):
            return kept
        options = quantisation.undone(source) if quantisation else {}
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = _read(where | options, source, dtype)
    if path.suffix == ".gguf" or quantisation:
        model = plain(model, dtype)
    if layers is not None:
        keep_layers(model, layers, source)
    nn.Module.to(model, device)
    made = LanguageModel(model, tokenizer, source)
    if quantisation:
        made.notes.append(f"{source} is quantised ({quantisation.method}); plain weights were made of it")
    return made


def _kept(
    where: dict[str, Any],
    quantisation: Quantisation,
    source: str,
    dtype: torch.dtype,
    device: torch.device | str,
    layers: Sequence[int] | None,
) -> LanguageModel | None:
    """Loads a model that stays quantised. Returns None if it cannot be used so, but can be made plain."""
    if not quantisation.is_known or (quantisation.can_be_undone and torch.device(device).type == "cpu"):
        return None  # transformers has kernels for weights that it can make plain on GPUs only
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = _read(where | {"device_map": {"": device}}, source, dtype)
        if layers is not None:
            keep_layers(model, layers, source)
        return LanguageModel(model, tokenizer, source)
    except Exception as error:  # every method has packages, kernels and errors of its own
        if quantisation.can_be_undone:
            return None
        raise ModelError(
            f"{source} is quantised ({quantisation.method}) and cannot be used here: {_first_line(error)}"
        ) from error


def _read(where: dict[str, Any], source: str, dtype: torch.dtype) -> PreTrainedModel:
    """Reads config and weights. Raises `ModelError` if weights are missing."""
    gguf = "gguf_file" in where
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **where, dtype=dtype, use_safetensors=None if gguf else True, output_loading_info=True
    )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):  # transformers would initialise them at random
        raise ModelError(f"the weights of {source} lack {len(missing)} tensors, {missing[0]} for example")
    if scales := sorted(key for key in info["unexpected_keys"] if "scale" in key.rpartition(".")[2]):
        raise ModelError(
            f"{source} is quantised in a way that its config.json does not tell: its weights hold {scales[0]}, which "
            "would be ignored; write the model that it was quantised from"
        )
    read: PreTrainedModel = model
    return read


def copied(model: LanguageModel, device: torch.device | str, dtype: torch.dtype) -> LanguageModel:
    """Returns a model with the same weights in memory of its own, as `load` would read them again."""
    copy = deepcopy(model.model)
    for tensor in copy.state_dict(keep_vars=True).values():  # other buffers, such as angles, stay in fp32
        tensor.data = tensor.data.to(dtype)
    nn.Module.to(copy, device)
    return LanguageModel(copy, model.tokenizer, model.name)


def can_be_copied(model: LanguageModel, dtype: torch.dtype) -> bool:
    """Tells whether `copied` gives what `load` would: in bf16 transformers keeps some weights of some models in fp32,
    and a quantised teacher may stay as it is."""
    kept = any(getattr(model.model, f"_keep_in_fp32_modules{kind}", None) for kind in ("", "_strict"))
    return not model.notes and not is_adapters(model.name) and (dtype == torch.float32 or not kept)


def is_adapters(source: str) -> bool:
    """Tells whether `source` is a directory of adapters, which `load` adds to their base model."""
    return (resolve(source) / ADAPTERS).is_file()


def resolve(source: str) -> Path:
    """Returns the path of `package:NAME/PATH` in an installed package, without importing it, and of any other source.

    Raises `ModelError` for a package or a path that does not exist.
    """
    if not source.startswith(PACKAGE):
        path = Path(source).expanduser()
        if not path.exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):  # not a hub's name
            raise ModelError(f"there is no model at {source} (looked in {Path.cwd()})")
        return path
    package, _, inside = source.removeprefix(PACKAGE).partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"{source!r} names the package {package!r}, which is not installed: pip install {package}")
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.exists():
        raise ModelError(f"{source!r} does not exist: the package {package!r} has no {inside!r}")
    return path


def keep_layers(model: PreTrainedModel, layers: Sequence[int], name: str = "model") -> None:
    """Keeps these decoder layers and drops the others: distillation often recovers a pruned model.

    Raises `ModelError` unless `layers` are rising numbers of existing layers.
    """
    config = model.config.get_text_config()
    count = config.num_hidden_layers
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= count:
        raise ModelError(f"layers of {name} must be rising numbers from 0 to {count - 1}, got {list(layers)}")
    parent, child = layer_stack(model, name, "drop layers of one stack only")
    kept = nn.ModuleList(getattr(parent, child)[i] for i in layers)
    for index, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    setattr(parent, child, kept)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in layers]


@contextmanager
def _explained(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot load {source!r} as a causal language model: {_first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' warnings until the block ends: what matters of them is an error or a note here."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
