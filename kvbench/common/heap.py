"""The C heap: pages that it holds without using them.

Many tensors of a compressed cache are smaller than the 32 MiB from which glibc gives memory back at once. What they
leave between them would add up from context to context.
"""

from __future__ import annotations

import ctypes
from functools import cache


def trim_heap() -> None:
    """Return the free pages of glibc's heap to the system. Does nothing with another C library."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> ctypes._NamedFuncPointer | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return None
