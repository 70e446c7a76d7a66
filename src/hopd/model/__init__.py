"""Loads a causal language model, splits it into backbone and head, adapts it, shards it, and counts its FLOPs.

It imports nothing of recipes, rollouts, teachers or training.
"""

from hopd.model.language_model import LanguageModel
from hopd.model.loading import is_adapters, load

__all__ = ["LanguageModel", "is_adapters", "load"]
