"""glibc's memory allocator, set for training."""

from __future__ import annotations

import ctypes
import platform
import sys

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""glibc's `malloc.h`."""
NEVER = 2**31 - 1
GROW_BY = 256 << 20


def keep_freed_memory() -> bool:
    """Have glibc's malloc keep freed memory for this process; return whether it does. Elsewhere than on glibc, do nothing.

    A training step on a CPU allocates and frees the same maps of tens of megabytes over and over. By default glibc takes each from
    the kernel with mmap and returns it, and the kernel clears every page anew. Of the forward and backward pass of
    EfficientNet-Lite0 on one AVX-512 core that was half of the time: 114 ms of processor time an image against 57. The process
    keeps the largest amount of memory that it ever needed, so this is for the training process alone.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return all(mallopt(option, value) for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, GROW_BY)))
