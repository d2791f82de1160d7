"""What the C library does with memory that is freed.

GNU's gives it back to the system where a step's activations are freed, and each page of it costs a
fault when the next step touches it: of a small model on a CPU a twentieth of the time or more
(`docs/log.md`). Kept, it is the same memory again. No result depends on it.
"""

from __future__ import annotations

import ctypes
import os
import sys

KEPT_BYTES = 2**30
"""Memory that is freed and kept at most, at the end of the heap."""

LARGEST_KEPT_BYTES = 2**28
"""Pieces from this size on are the system's own, and given back at once."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_TOLD = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for what it allocates next; return whether it does.

    That is with GNU's C library alone, and unless the user has said otherwise in the environment.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _TOLD):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(
        library.mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        and library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
    )
