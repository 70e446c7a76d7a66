"""Computes matrix products, norms, gated MLPs and attention faster than torch's own implementations, mostly on CPUs.

It knows tensors, torch's layers and transformers' registry of attentions, but no language model and nothing else of
hopd. Only speed and rounding depend on it. HOPD_KERNELS=0 in the environment turns the compiled kernels off.
"""
