"""Memory that a process keeps once it has it.

glibc gives large blocks back to the system when they are freed, and the next tensor of that size is built up again from
empty pages, one fault for every 4 KiB. A trainer allocates the same large tensors in every step.
"""

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
NEVER, GIB = -1, 2**30


@cache
def keep_freed_memory() -> None:
    """From now on, for the whole process: all blocks of less than 1 GiB. Does nothing with another C library."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_TRIM_THRESHOLD, NEVER)
        mallopt(M_MMAP_THRESHOLD, GIB)
