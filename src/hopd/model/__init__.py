"""A causal language model as hopd uses it: loaded, taken apart into backbone and head, sharded, adapted, counted."""

from hopd.model.language_model import LanguageModel
from hopd.model.loading import is_adapters, load

__all__ = ["LanguageModel", "is_adapters", "load"]
