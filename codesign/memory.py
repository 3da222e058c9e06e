"""Memory of activations: kept by the process from one layer to the next."""

from __future__ import annotations

import ctypes

#: Parameters of glibc's ``mallopt``, from its malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process reuse memory that was freed, whatever the size; whether the system's allocator can be told so.

    By default glibc gives blocks of more than 32 MiB back to the system and asks for them anew, and each of their pages
    costs a fault when it is first written. With the activations of images of 224 x 224 pixels that is a third of the
    time of a candidate (`benchmarks/bench_memory.py`). Elsewhere than on glibc nothing is changed.

    Notes
    -----
    It holds for the whole process and its later allocations, so a program decides on it, not a library: the commands
    of codesign call it first. The process keeps its largest size until it ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
