"""Counts the FLOPs of a model's passes from its weights: multiplications and additions of the matrix products.

The counts are algorithmic: causal attention reads the past only, and padding is free. Element-wise work is not counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from hopd.model.language_model import LanguageModel


@dataclass(frozen=True)
class PassCost:
    """Holds the FLOPs from which a pass is counted.

    `linear` is one position through the backbone's matrices, `attention` one query with one key in all layers, `head`
    one position through the vocabulary head. `trained` and `head_trained` are the shares of the matrices, and of the
    head, that are trained.
    """

    linear: float
    attention: float
    head: float
    trained: float = 1.0
    head_trained: float = 1.0

    @classmethod
    def of(cls, model: LanguageModel) -> "PassCost":
        """Counts from a model's weights and config."""
        config = model.config
        embeddings = {id(m.weight) for m in model.backbone.modules() if isinstance(m, nn.Embedding)}
        active = (getattr(config, "num_experts_per_tok", None) or 1) / model.experts if model.experts else 1.0
        matrices = [p for p in model.backbone.parameters() if p.dim() >= 2 and id(p) not in embeddings]
        # The experts of a layer are one tensor of three dimensions, and each token uses a few of them.
        flops = [2.0 * p.numel() * (active if p.dim() == 3 else 1.0) for p in matrices]
        linear, head = sum(flops), model.head.weight
        trained = sum(part for part, p in zip(flops, matrices, strict=True) if p.requires_grad) / linear
        heads = getattr(config, "num_attention_heads", 0) or 0
        attention = 4.0 * config.num_hidden_layers * heads * model.head_width
        return cls(linear, attention, 2.0 * head.numel(), trained, float(head.requires_grad))

    def generate(self, rollouts: Iterable[tuple[int, int]], prompts: Iterable[int]) -> float:
        """Returns the FLOPs of sampling.

        `rollouts` are (prompt length, response length) of each rollout, `prompts` the lengths of the prefilled prompts.
        """
        prefill = sum(self.linear * p + self.attention * p * (p + 1) / 2 for p in prompts)
        decode = sum(
            self.linear * (t - 1) + self.attention * ((p + 1) * (t - 1) + (t - 1) * (t - 2) / 2) + self.head * t
            for p, t in rollouts
            if t
        )
        return prefill + decode

    def forward(self, lengths: Iterable[int], head_positions: int) -> float:
        """Returns the FLOPs of a forward pass over sequences of these lengths."""
        backbone = sum(self.linear * n + self.attention * n * (n + 1) / 2 for n in lengths)
        return backbone + self.head * head_positions

    def backward(self, lengths: Iterable[int], head_positions: int) -> float:
        """Returns the FLOPs of its backward pass: gradients of the inputs, and of the weights that are trained."""
        backbone = sum((1 + self.trained) * self.linear * n + self.attention * n * (n + 1) for n in lengths)
        return backbone + (1 + self.head_trained) * self.head * head_positions
