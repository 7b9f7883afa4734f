"""Memory that a CPU run has freed stays with the process."""

import ctypes
import sys

# parameters of glibc's mallopt (malloc.h)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Stops glibc from giving the memory of every large tensor back and asking for it anew in the next step.

    The kernel clears each page that it hands out: without this, a step of a small model on a CPU spends a fifth of its
    time there. Elsewhere than under glibc it does nothing.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 2**26)
