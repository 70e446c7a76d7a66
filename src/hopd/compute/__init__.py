"""Products, norms, gated MLPs and attention that are faster than torch's own way to them, mostly on CPUs.

Ground floor: it knows tensors and torch's layers, and no language model. HOPD_KERNELS=0 switches the compiled kernels
off; nothing but speed depends on this room.
"""
