"""Chooses the tokens whose log-probs are a model's fingerprint: copies with the same log-probs have the same
weights."""

from typing import cast

import torch

TOKENS = 32


def fingerprint_ids(vocabulary: int) -> list[int]:
    """Returns `TOKENS` ids, or fewer in a smaller vocabulary, evenly spread over it."""
    return cast(list[int], torch.linspace(0, vocabulary - 1, min(TOKENS, vocabulary)).long().tolist())
