"""The C heap: pages that it holds without using them.

glibc gives memory back at once only for blocks above a limit that rises to 32 MiB. The buffers of a compressed cache
are often smaller, so those of an earlier layout would stay with the process, and count twice.
"""

from __future__ import annotations

import ctypes
from functools import cache

_WORTH_IT = 2**20  # bytes; a trim looks at every free block of the heap


def trim_heap(freed: int) -> None:
    """Return the free pages of glibc's heap to the system. Does nothing with another C library.

    Args:
        freed: bytes of the heap that have become free; for few of them the search is not worth its time.
    """
    trim = _malloc_trim()
    if trim is not None and freed >= _WORTH_IT:
        trim(0)


@cache
def _malloc_trim() -> ctypes._NamedFuncPointer | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return None
