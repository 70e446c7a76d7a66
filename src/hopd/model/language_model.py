"""Wraps a causal language model of Hugging Face: backbone, head, tokenizer, stop ids, context length.

The backbone runs on all positions, the head only where logits are needed. So the two are separated here, once, and
checked against the model's own logits.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from hopd.errors import ModelError
from hopd.model.sharding import Sharding
from hopd.model.stop import NO_STOP
from hopd.objective.head import Head


class LanguageModel:
    """Separates `model` into a backbone and a head.

    It stays in evaluation mode: with dropout, the policy that is updated would differ from the one that sampled. Raises
    `ModelError` if the parts do not reproduce the model's logits, or if it is not causal.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "model"):
        nn.Module.eval(model)
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.config = model.config.get_text_config()
        self.backbone: nn.Module = model.base_model
        self.forward: Callable[..., Any] = self.backbone  # a sharded model has its own
        self.sharding = Sharding()  # not sharded: this process has all weights
        self.recomputes = False  # gradient checkpointing, in passes with a gradient
        self.stop = NO_STOP  # what ends a response besides the model's own ends: a recipe's rollout.stop
        self.notes: list[str] = []  # what a person should know of how it was loaded
        self._vocabulary: int | None = None
        parameters = inspect.signature(self.backbone.forward).parameters
        self._takes_positions = "position_ids" in parameters
        # transformers 5.24 calls past_key_values cache; Mamba has cache_params.
        self._cache = next((name for name in ("cache", "cache_params") if name in parameters), "past_key_values")
        if self.backbone is model or self.output_layer is None:
            raise ModelError(f"{name} is no causal language model with a vocabulary head ({type(model).__name__})")
        _verify(self)

    @property
    def head(self) -> Head:
        """Returns the head, with the model's parameters as they are now: sharding and training may replace them."""
        linear = self.output_layer
        divisor = getattr(self.config, "logits_scaling", None)  # Granite divides, Cohere multiplies
        head = Head(
            linear.weight,
            getattr(linear, "bias", None),
            scale=1.0 / divisor if divisor else float(getattr(self.config, "logit_scale", None) or 1.0),
            softcap=getattr(self.config, "final_logit_softcapping", None),
        )
        return head if self._vocabulary is None else head.narrow(self._vocabulary)

    @property
    def output_layer(self) -> Any:
        """Returns the module whose weight and bias are the head's, or None for a model without one."""
        find: Callable[[], Any] = self.model.get_output_embeddings
        return find()

    def limit_vocabulary(self, vocabulary: int) -> None:
        """Limits the head to the first `vocabulary` ids from now on, so that two models share one vocabulary."""
        self._vocabulary = vocabulary

    @property
    def stop_ids(self) -> frozenset[int]:
        """Returns the ids that end a response: the first of `declared_ends`, and those of `stop`."""
        return next(iter(self.declared_ends.values()), frozenset()) | self.stop.ids

    @property
    def declared_ends(self) -> dict[str, frozenset[int]]:
        """Returns the end-of-sequence ids by the place that names them: generation config, config, tokenizer."""
        generation = self.model.generation_config.eos_token_id if self.model.generation_config else None
        places = {
            "generation_config": generation,
            "config": self.config.eos_token_id,
            "tokenizer": self.tokenizer.eos_token_id,
        }
        return {
            place: frozenset(ids) if isinstance(ids, Sequence) else frozenset([ids])
            for place, ids in places.items()
            if ids is not None
        }

    @property
    def context(self) -> int | None:
        """Returns the most tokens of prompt and response together, or None if the model has no limit."""
        for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
            if (limit := getattr(self.config, name, None)) is not None:
                return int(limit)
        return None

    @property
    def head_width(self) -> int:
        """Returns the width of an attention head, or 0 for a model without attention."""
        heads = getattr(self.config, "num_attention_heads", None)
        return int(getattr(self.config, "head_dim", None) or (self.config.hidden_size // heads if heads else 0))

    @property
    def experts(self) -> int:
        """Returns how many experts a layer of a mixture routes to, or 0 for a model without them."""
        names = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
        count = next((count for name in names if (count := getattr(self.config, name, None))), 0)
        return int(max(count) if isinstance(count, Sequence) else count)

    @property
    def device(self) -> torch.device:
        """Returns the device of the model's parameters."""
        device: torch.device = self.model.device
        return device

    def hidden(
        self,
        ids: Int[Tensor, "B L"],
        mask: Bool[Tensor, "B K"] | Float[Tensor, "B 1 1 K"] | None = None,
        positions: Int[Tensor, "B L"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Returns the last hidden states of B sequences.

        `mask` hides left padding among the K positions of cache and `ids`: where it is false, or by a number that is
        added to the attention scores. Right padding needs no mask, since a causal model never reads it.
        """
        if self.recomputes:
            self._recompute(cache is None and torch.is_grad_enabled())
        takes = positions is not None and self._takes_positions
        options: dict[str, Any] = {"position_ids": positions} if takes else {}
        hidden: Tensor = self.forward(
            input_ids=ids, attention_mask=mask, use_cache=cache is not None, **{self._cache: cache}, **options
        ).last_hidden_state
        return hidden

    def checkpoint_activations(self) -> None:
        """Turns on gradient checkpointing: layers are recomputed in the backward pass.

        Raises `ModelError` if the architecture does not support it.
        """
        if not self.model.supports_gradient_checkpointing:
            raise ModelError(f"{self.name} does not support gradient checkpointing; set it to false in the recipe")
        enable: Callable[..., None] = self.model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        self.recomputes = True

    def _recompute(self, wanted: bool) -> None:
        """Sets whether layers recompute: not while decoding, because a layer that recomputes ignores the cache."""
        # A layer reads its own `training`; its children stay in eval mode, so that dropout stays off.
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = wanted


@torch.no_grad()
def _verify(lm: LanguageModel) -> None:
    """Checks what a config does not tell: that the head reproduces the logits, and that hidden states are causal."""
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
            f"{lm.name} is no causal language model: its hidden states see later tokens ({type(lm.model).__name__})"
        )
    if not torch.allclose(lm.head.logits(hidden), logits, rtol=tolerance, atol=tolerance * float(logits.abs().max())):
        raise ModelError(
            f"{lm.name}: its logits are not those of its head and hidden states ({type(lm.model).__name__} scales them "
            "in a way that hopd does not know); please report this architecture"
        )
