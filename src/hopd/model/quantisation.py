"""Makes plain models of quantised ones: what is trained and saved must be weights, not codes and scales."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from hopd.errors import ModelError

SETTINGS = "quantization_config"


class Quantisation:
    """Describes how the weights of a model are stored: `method` is transformers' name for it, if it is known, and
    `can_be_undone` tells whether transformers makes plain weights while it reads them."""

    def __init__(self, config: PretrainedConfig, settings: dict[str, Any]):
        self.config, self.settings = config, settings
        bits = next((bits for bits in ("4bit", "8bit") if settings.get(f"load_in_{bits}")), None)
        self.method = f"bitsandbytes_{bits}" if bits else str(settings.get("quant_method"))
        from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING  # slow to import

        kind = AUTO_QUANTIZATION_CONFIG_MAPPING.get(self.method)
        self.is_known = kind is not None
        self.can_be_undone = kind is not None and "dequantize" in inspect.signature(kind).parameters

    @classmethod
    def of(cls, where: dict[str, Any]) -> "Quantisation | None":
        """Reads the config of the model that `from_pretrained` would load, or returns None for plain weights."""
        config: Any = AutoConfig.from_pretrained(**where)
        settings = getattr(config, SETTINGS, None) or getattr(config.get_text_config(), SETTINGS, None)
        return cls(config, settings if isinstance(settings, dict) else settings.to_dict()) if settings else None

    def undone(self, source: str) -> dict[str, Any]:
        """Returns the options of `from_pretrained` with which it makes plain weights. Raises `ModelError` if it
        cannot."""
        if not self.can_be_undone:
            raise ModelError(
                f"{source} is quantised ({self.method}), and transformers cannot make plain weights of it, which "
                "training needs; write the model that it was quantised from"
            )
        setattr(self.config, SETTINGS, self.settings | {"dequantize": True})
        return {"config": self.config}


def plain(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Makes a plain model of one that is dequantised: some weights have another dtype, and transformers would quantise
    it again when it is saved, or refuse to save it."""
    config = type(model.config)(**model.config.to_dict())
    if hasattr(config, SETTINGS):
        delattr(config, SETTINGS)
    from_config: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
    made = from_config(config, dtype=dtype)
    made.load_state_dict(model.state_dict())
    made.generation_config = model.generation_config
    return made
