"""The compiled functions for CPUs, loaded once."""

from __future__ import annotations

from functools import cache

from kvbench_kernels import build
from kvbench_kernels.ops.library import Library, load


@cache
def host_library() -> Library:
    """Load the compiled functions; g++ compiles them at the first use.

    Raises:
        ValueError: there is no g++, or the cache cannot be written.
        RuntimeError: they do not compile, or do not find the OpenMP functions of this torch.
    """
    return load(build.cpu())
