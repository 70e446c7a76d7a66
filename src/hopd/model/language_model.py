"""A causal language model as hopd uses it: a backbone, a head, a tokenizer, stop ids, a context length.

Any Hugging Face causal LM. The backbone runs on all positions, the head only where its logits are wanted, so the two
are taken apart once, here, and the parts are checked against the model's own logits.
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
from hopd.objective.head import Head


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
        mask: Bool[Tensor, "B K"] | Float[Tensor, "B 1 1 K"] | None = None,
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
