"""A causal language model as hopd uses it: a backbone, a head, a tokenizer, stop ids, a context length.

Any Hugging Face causal LM. The backbone runs on all positions, the head only where its logits are wanted, so the two
are taken apart once, here, and the parts are checked against the model's own logits.
"""

import importlib.util
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from hopd.errors import ModelError
from hopd.layer_stack import layer_stack
from hopd.objective.head import Head
from hopd.training.sharding import Sharding

PACKAGE = "package:"
ADAPTERS = "adapter_config.json"  # in a directory of peft's


class LanguageModel:
    """`model` taken apart; raises `ModelError` if the parts do not give its logits back, or if it is not causal.

    It stays in evaluation mode: dropout would make the updated policy another one than the one that sampled.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "model"):
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.config = model.config.get_text_config()
        self.backbone: nn.Module = model.base_model
        self.forward: Callable[..., Any] = self.backbone  # another way to it, where the model is cut up
        self.sharding = Sharding()  # none: this process has all weights
        self.recomputes = False  # gradient checkpointing, where there is a gradient
        self._vocabulary: int | None = None
        taken = inspect.signature(self.backbone.forward).parameters
        self._takes_positions = "position_ids" in taken
        self._cache = "cache" if "cache" in taken else "past_key_values"  # renamed in transformers 5.24
        if self.backbone is model or model.get_output_embeddings() is None:
            raise ModelError(f"{name} is no causal language model with a vocabulary head ({type(model).__name__})")
        _verify(self)

    @property
    def head(self) -> Head:
        """Made anew at each use: its tensors are the model's parameters, which training replaces or updates."""
        linear = self.model.get_output_embeddings()
        divisor = getattr(self.config, "logits_scaling", None)  # Granite divides, Cohere multiplies
        head = Head(
            linear.weight,
            getattr(linear, "bias", None),
            scale=1.0 / divisor if divisor else float(getattr(self.config, "logit_scale", None) or 1.0),
            softcap=getattr(self.config, "final_logit_softcapping", None),
        )
        return head if self._vocabulary is None else head.narrow(self._vocabulary)

    def limit_vocabulary(self, vocabulary: int) -> None:
        """From now on the head gives the first `vocabulary` ids only: two models then share one vocabulary."""
        self._vocabulary = vocabulary

    @property
    def stop_ids(self) -> frozenset[int]:
        """Every end-of-sequence id of the generation config, or else of the config, or else of the tokenizer."""
        generation = self.model.generation_config.eos_token_id if self.model.generation_config else None
        for ids in (generation, self.config.eos_token_id, self.tokenizer.eos_token_id):
            if ids is not None:
                return frozenset(ids) if isinstance(ids, Sequence) else frozenset([ids])
        return frozenset()

    @property
    def context(self) -> int | None:
        """The most tokens, prompt and response together, or None where the model has no limit."""
        for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
            if (limit := getattr(self.config, name, None)) is not None:
                return int(limit)
        return None

    @property
    def head_width(self) -> int:
        """The width of an attention head, 0 for a model without attention."""
        heads = getattr(self.config, "num_attention_heads", None)
        return getattr(self.config, "head_dim", None) or (self.config.hidden_size // heads if heads else 0)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def hidden(
        self,
        ids: Int[Tensor, "B L"],
        mask: Bool[Tensor, "B K"] | None = None,
        positions: Int[Tensor, "B L"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The last hidden states. `mask` hides left padding, among the cached positions too; rows that are padded on
        the right need none, since a causal model never looks there."""
        if self.recomputes:
            self._recompute(cache is None and torch.is_grad_enabled())
        given: dict[str, Any] = {"position_ids": positions} if positions is not None and self._takes_positions else {}
        return self.forward(
            input_ids=ids, attention_mask=mask, use_cache=cache is not None, **{self._cache: cache}, **given
        ).last_hidden_state

    def checkpoint_activations(self) -> None:
        """Gradient checkpointing: layers are recomputed in the backward pass."""
        if not self.model.supports_gradient_checkpointing:
            raise ModelError(f"{self.name} does not support gradient checkpointing; set it to false in the recipe")
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.recomputes = True

    def _recompute(self, wanted: bool) -> None:
        """A layer that recomputes ignores the cache, so it must not while decoding. It looks at its own `training`;
        its children stay in eval mode, so that dropout stays off."""
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = wanted


def load(
    source: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    layers: Sequence[int] | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """A model from a directory, a hub name, or a file of an installed package, `package:NAME/PATH`.

    Only safetensors and GGUF are read: neither can run code. `layers` keeps those layers and drops the others.
    A directory of LoRA adapters gives their base model with the adapters in it. Raises `ModelError`.
    """
    path = resolve(source)
    if is_adapters(source):
        from hopd.lora import load_adapters

        base = json.loads((path / ADAPTERS).read_text()).get("base_model_name_or_path")
        if not base:
            raise ModelError(f"the adapters of {source} do not say what model they belong to (base_model_name_or_path)")
        adapted = load(base, dtype=dtype, device=device, layers=layers, trust_remote_code=trust_remote_code)
        load_adapters(adapted, path)
        adapted.name = source
        return adapted
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(path), "trust_remote_code": trust_remote_code}
    if path.suffix == ".gguf":
        where |= {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    quiet = _quiet_gguf() if path.suffix == ".gguf" else nullcontext()
    try:
        with quiet:
            tokenizer = AutoTokenizer.from_pretrained(**where)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **where,
                dtype=dtype,
                use_safetensors=None if path.suffix == ".gguf" else True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot load {source!r} as a causal language model: {_first_line(error)}") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):  # transformers would make them up
        raise ModelError(f"the weights of {source} lack {len(missing)} tensors, {missing[0]} for example")
    if path.suffix == ".gguf":
        model = _dequantised(model)
    if layers is not None:
        keep_layers(model, layers, source)
    nn.Module.to(model, device)
    return LanguageModel(model, tokenizer, source)


def is_adapters(source: str) -> bool:
    """Whether it is a directory of adapters, which `load` puts into their base model."""
    return (resolve(source) / ADAPTERS).is_file()


def resolve(source: str) -> Path:
    """`package:NAME/PATH` → that file of an installed package (not imported); anything else as it is."""
    if not source.startswith(PACKAGE):
        path = Path(source).expanduser()
        if not path.exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):  # no name of a hub
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
    """Keeps these decoder layers, in this order (recovery after pruning is a classic use of distillation)."""
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


def _dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """A model read from GGUF holds plain weights but calls itself quantised, and then refuses to be saved."""
    config = type(model.config)(**model.config.to_dict())
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain


@torch.no_grad()
def _verify(lm: LanguageModel) -> None:
    """Two looks that catch what a config does not say: a head with another scale, and attention to the future."""
    vocabulary = lm.head.vocabulary
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=lm.device) % vocabulary
    hidden = lm.hidden(ids)
    logits = lm.model(input_ids=ids).logits.float()
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(f"{lm.name}: its logits are not finite; the weights hold NaN or infinite values")
    tolerance = 1e-3 if lm.model.dtype == torch.float32 else 5e-2
    past, other = hidden[:, :3].float()
    if not torch.allclose(past, other, rtol=tolerance, atol=tolerance * float(past.abs().max())):
        raise ModelError(
            f"{lm.name} is no causal language model: its hidden states look at later tokens ({type(lm.model).__name__})"
        )
    if not torch.allclose(lm.head.logits(hidden), logits, rtol=tolerance, atol=tolerance * float(logits.abs().max())):
        raise ModelError(
            f"{lm.name}: its logits are not those of its head and hidden states ({type(lm.model).__name__} scales them "
            "in a way that hopd does not know); please report this architecture"
        )


@contextmanager
def _quiet_gguf() -> Iterator[None]:
    """Until the block ends, transformers does not warn that reading GGUF takes memory: it is wanted here."""
    logger = logging.getLogger("transformers.modeling_gguf_pytorch_utils")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
