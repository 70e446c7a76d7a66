"""The tokens whose log-probs are a model's fingerprint: two copies that give the same ones have the same weights."""

import torch

TOKENS = 32


def fingerprint_ids(vocabulary: int) -> list[int]:
    """Gives `TOKENS` ids, or fewer where the vocabulary is smaller, evenly spread over it."""
    return torch.linspace(0, vocabulary - 1, min(TOKENS, vocabulary)).long().tolist()
