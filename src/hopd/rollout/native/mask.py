"""Masks the cached positions that a sequence must not attend to while it decodes: its padding and unused positions."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopd.model import LanguageModel
from hopd.rollout.native.acceleration import groups_attention
from hopd.rollout.native.cache import attends_everywhere, attends_nowhere, capacity

HIDDEN = float("-inf")


class DecodingMask:
    """Keeps the values that attention adds to its scores, 0 or −inf, and updates one column a token.

    A model whose layers attend to different positions gets a mask (sequences, positions) and derives its own from it.
    """

    def __init__(self, model: LanguageModel, prompts: Bool[Tensor, "R P"]):
        self.prompts = prompts
        self._masks_tokens = not attends_nowhere(model.config)
        self._grows = attends_everywhere(model.config)
        self._same_in_all_layers = groups_attention(model) and not getattr(model.config, "sliding_window", None)
        self._added = torch.full((len(prompts), self._room(prompts.shape[1])), HIDDEN, device=prompts.device)
        self._added = self._added.to(model.model.dtype)
        self._added[:, : prompts.shape[1]].masked_fill_(prompts, 0.0)

    def of_prompts(self) -> Bool[Tensor, "R K"] | None:
        """Returns the mask for the pass over the prompts, None where a causal one is enough."""
        return None if bool(self.prompts.all()) else self.prompts

    def of_token(self, position: int) -> Float[Tensor, "R 1 1 K"] | Bool[Tensor, "R K"] | None:
        """Returns the mask for the pass that writes the cache at `position`, None where nothing attends; call it for
        every position, in order."""
        if not self._masks_tokens:
            return None
        if (missing := self._room(position + 1) - self._added.shape[1]) > 0:
            self._added = torch.nn.functional.pad(self._added, (0, missing), value=HIDDEN)
        self._added[:, position] = 0.0
        return self._added[:, None, None, :] if self._same_in_all_layers else self._added == 0

    def reorder(self, rows: Int[Tensor, " K"]) -> None:
        """Moves row `rows[i]` to row i."""
        self._added = self._added[rows]

    def _room(self, length: int) -> int:
        return capacity(length, self.prompts.device) if self._grows else length
