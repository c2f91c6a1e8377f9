"""Compiled kernels as shared libraries: compiled when first needed, and kept in a cache.

There are three kinds. `cuda` is the kernels compiled by nvcc for GPUs. `host` is the same `.cu` files compiled by g++;
it runs the kernels on a CPU through csrc/host/shim.h and is for tests. Both have the C functions that `ops.library`
binds. `cpu` is the attention of decode steps for CPUs, with functions of its own that `ops.library` binds too.

| file | content |
|---|---|
| sources.py | the files in csrc/ that each kind is compiled from, and their hash |
| recipes.py | compiler, flags and architectures of a kind |
| cache.py | the folder of compiled libraries: keys, locks, checks for damage |
| failures.py | what did not compile, for later starts |
| agreement.py | comparison of csrc/calls.h with the structs of ctypes |
| compilation.py | running the compiler, and the report next to each library |
| compilers.py, ptxas.py | where the compilers are, and what they print |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kvbench_kernels.build import cache, recipes
from kvbench_kernels.build.cache import cache_dir
from kvbench_kernels.build.compilation import Report, read_report
from kvbench_kernels.build.ptxas import Kernel
from kvbench_kernels.build.recipes import ARCHS
from kvbench_kernels.build.sources import csrc

__all__ = ["ARCHS", "Report", "cache_dir", "cached", "cpu", "csrc", "cuda", "cuda_for", "host", "report"]


def host(sanitize: bool = False, defines: Sequence[str] = (), force: bool = False) -> Path:
    """Return the kernels compiled by g++ for the CPU.

    Args:
        sanitize: compile with AddressSanitizer and UndefinedBehaviorSanitizer. A process that loads the library must
            be started with LD_PRELOAD=`compilers.sanitizer_runtimes()`.
        defines: preprocessor names, "NAME" or "NAME=value".
        force: compile even if the cache has the library.

    Raises:
        ValueError: there is no g++, or the cache cannot be written.
        CompilerError: the kernels do not compile.
    """
    return cache.built(recipes.host(sanitize, defines), force)


def cpu(force: bool = False, retry: bool = False) -> Path:
    """Return the attention of decode steps, compiled by g++ for the vector instructions of this CPU.

    Args:
        force: compile even if the cache has the library.
        retry: compile even if that failed at an earlier start.

    Raises:
        ValueError: there is no g++, this x86 CPU has no AVX2, or the cache cannot be written.
        CompilerError: it does not compile.
    """
    vectors = recipes.vector_flags()
    try:
        recipe = recipes.cpu(vectors)
    except ValueError:
        if (library := cache.built_elsewhere("cpu", vectors)) is None:
            raise
        return library
    return cache.built(recipe, force, retry=retry)


def cuda(
    archs: Sequence[str] = ARCHS,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
    retry: bool = False,
) -> Path:
    """Return the kernels compiled by nvcc for GPUs, with the report of ptxas next to them (`report`).

    Args:
        archs: "sm_90" for machine code, "compute_90" for PTX, which the driver compiles for newer GPUs.
        force: compile even if the cache has the library.
        progress: called with one line when a file is compiled.
        retry: compile even if that failed at an earlier start.

    Raises:
        ValueError: there is no nvcc or g++, an architecture has no such name, or the cache cannot be written.
        CompilerError: the kernels do not compile.
    """
    return cache.built(recipes.cuda(archs), force, progress, retry)


def cuda_for(capability: tuple[int, int]) -> Path:
    """Return kernels that run on a GPU of this compute capability: the full build if it exists, else one for this GPU.

    Raises:
        ValueError: as `cuda`, and for a GPU older than Ampere.
        CompilerError: the kernels do not compile.
    """
    return cached(capability) or cuda((recipes.arch_for(capability),))


def cached(capability: tuple[int, int]) -> Path | None:
    """Return what the cache has for a GPU of this compute capability; without compilers, a library from any compiler.

    Raises:
        ValueError: the cache has nothing and there is no compiler, or the GPU is older than Ampere.
    """
    choices = (ARCHS, (recipes.arch_for(capability),))
    try:
        folders = [cache.folder_of(recipes.cuda(archs)) for archs in choices]
    except (ValueError, RuntimeError):
        for archs in choices:
            if (library := cache.built_elsewhere("cuda", archs)) is not None:
                return library
        raise
    return next((library for folder in folders if (library := cache.intact(folder)) is not None), None)


def report(library: Path) -> list[Kernel]:
    """Return registers, spills and shared memory of each kernel in a library from `cuda`; empty for one from `host`."""
    about = read_report(library.parent)
    return [] if about is None else about["kernels"]
