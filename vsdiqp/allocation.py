"""What the C library does with memory that is given back to it."""

import ctypes
import os
from functools import cache

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Of glibc's mallopt (malloc.h)."""
_LARGE = 1 << 30


@cache
def keep_freed_memory() -> None:
    """Have this process keep memory that it frees, for the next time, instead of handing it to the system.

    A network on a CPU frees and wants the same hundreds of megabytes for every tile. Memory fresh from the system costs
    a fault for every 4 KiB: without this, a tenth of the time and more. The most that is held stays the same; it is
    held until the process ends. Who has told glibc by MALLOC_... what to do has been heard. Elsewhere nothing happens.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Both, or setting one would freeze the other at its small beginning.
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGE - 1)
