"""Keeps freed memory in the process, for the next tensor.

glibc returns large freed blocks to the system, so the next tensor of that size needs new pages, with a page fault for
every 4 KiB. A trainer allocates the same large tensors in every step.
"""

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
NEVER, GIB = -1, 2**30


@cache
def keep_freed_memory() -> None:
    """Makes glibc keep freed blocks of less than 1 GiB, in this process, from now on; elsewhere it does nothing."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_TRIM_THRESHOLD, NEVER)
        mallopt(M_MMAP_THRESHOLD, GIB)
