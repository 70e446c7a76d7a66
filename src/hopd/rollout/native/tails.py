"""Follows the last tokens of each sequence while it decodes, to find the one that completes a stop text."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hopd.model.stop import Stop
from hopd.rollout.rollout import Stretch


class Tails:
    """Holds as many response tokens of each running sequence as a text of `stop` may span, those of earlier steps
    included. Without texts it holds nothing, and the sequences are not read."""

    def __init__(self, stop: Stop, stretches: Sequence[Stretch]):
        self.stop = stop
        looked_at = stretches if stop.texts else ()
        self._ids: list[list[int]] = [stretch.rollout.ids[-stop.window :].tolist() for stretch in looked_at]

    def completed_by(self, tokens: Int[Tensor, " R"]) -> Bool[Tensor, " R"]:
        """Adds a token to each sequence, and tells which of the tokens complete a text."""
        completed = torch.zeros_like(tokens, dtype=torch.bool)
        if not self.stop.texts:
            return completed
        for ids, token in zip(self._ids, tokens.tolist(), strict=True):
            ids.append(token)
            del ids[: -self.stop.window]
        return torch.tensor([self.stop.completes(ids) for ids in self._ids], device=tokens.device)

    def select(self, kept: Int[Tensor, " K"]) -> None:
        """Keeps these sequences, in this order."""
        if self.stop.texts:
            self._ids = [self._ids[row] for row in kept.tolist()]
