"""Scores with teachers in this process: any causal LM that shares the student's vocabulary, or the student without its
adapters."""

import torch

from hopd.compute.layers import fast_layers
from hopd.model import LanguageModel
from hopd.model.adapters import without_adapters
from hopd.objective import Detail, HiddenSignal
from hopd.rollout.batch import Batch


class LocalTeacher:
    """Scores with its whole distribution, at the temperature that the student samples with."""

    gives = Detail.VOCABULARY

    def __init__(self, model: LanguageModel, temperature: float = 1.0):
        self.model, self.temperature = model, temperature

    @torch.no_grad()
    def score(self, batch: Batch) -> HiddenSignal:
        """Returns hidden states, not logits: the objective projects them chunk by chunk."""
        read = batch.of_teacher
        with fast_layers(self.model.backbone):
            hidden = read.states(self.model.hidden(read.ids))
        return HiddenSignal(self.model.head, hidden, self.temperature)


class BaseTeacher(LocalTeacher):
    """Scores with the student's weights without its adapters: one copy of the weights serves as both models."""

    def score(self, batch: Batch) -> HiddenSignal:
        """Returns hidden states as `LocalTeacher.score` does, with the adapters switched off."""
        with without_adapters(self.model.model):
            return super().score(batch)
