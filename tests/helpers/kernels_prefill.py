"""Shared by the tests of kernels: random numbers, the emulated build, poisoned memory, random threads, planted bugs.

Shape suffixes as in kvbench_kernels.ops.reference.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvbench_kernels import build
from kvbench_kernels.build import compilers
from kvbench_kernels.ops import library
from tests.helpers.kernels_sources import copy_sources, unit

SEED = int(os.environ.get("KVBENCH_SEED") or random.SystemRandom().randrange(2**31))
DTYPES = (torch.bfloat16, torch.float16)
DIMS = (64, 80, 96, 128, 256)
GROUPS = ("mean", "max", "sum")
POOLS = ("none", "max", "avg")

needs_gxx = pytest.mark.gxx


def generator(offset: int) -> torch.Generator:
    """Return fresh random numbers in every run; pytest shows how to draw them again when a test fails."""
    print(f"KVBENCH_SEED={SEED} draws the same again")
    return torch.Generator().manual_seed(SEED + offset)


def fixed_generator(offset: int) -> torch.Generator:
    """Return the same random numbers in every run: whether a test sees a planted bug must not depend on the run."""
    return torch.Generator().manual_seed(offset)


def draw(g: torch.Generator, low: int, high: int) -> int:
    """Draw a whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=g))


def pick(g: torch.Generator, *values: int) -> int:
    return values[draw(g, 0, len(values) - 1)]


@functools.cache
def emulated() -> library.Library:
    """Load the kernels for the CPU."""
    return library.load(build.host())


def surrounded(x: Tensor, extra: int = 16) -> Tensor:
    """Return the same numbers surrounded by NaN, with other strides: reading next to a row or after the end shows."""
    *outer, dim = x.shape
    room = torch.full([size + 2 for size in outer] + [dim + extra], torch.nan, dtype=x.dtype)
    inside = room[tuple(slice(1, 1 + size) for size in outer)][..., 8 : 8 + dim]
    inside.copy_(x)
    return inside


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory from torch.empty is full of NaN (all ones where it holds no floats)."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all(), "the poison does not work"
    yield
    torch.use_deterministic_algorithms(False)


@contextmanager
def shuffled(seed: int) -> Iterator[None]:
    """Run threads and blocks in a random order."""
    names = ("KVB_HOST_SHUFFLE", "KVB_HOST_SHUFFLE_BLOCKS")
    os.environ.update(dict.fromkeys(names, str(seed)))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


def shows(check: Callable[[], bool]) -> bool:
    """Return True if a planted bug makes `check` true or ends the child process: many bugs write out of bounds."""
    child = os.fork()
    if child == 0:
        is_found = False
        try:
            faulthandler.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            is_found = check()
        except RuntimeError as error:  # torch's, over memory that the bug wrote to; an op's own error names the op
            is_found = not str(error).startswith("kvb::")
        finally:  # any other exception is no finding
            os._exit(is_found)
    return os.waitpid(child, 0)[1] != 0


def with_bug(file: str, right: str, wrong: str) -> library.Library:
    """Compile the kernels of one .cu file, `right` replaced by `wrong` in it or its headers; bf16 and D = 64 alone."""
    with tempfile.TemporaryDirectory() as scratch:
        units = [file, *(["lse.cu"] if file == "score.cu" else [])]
        return library.Library(compiled(Path(scratch), units, ["-O1"], {64}, right, wrong))


def compiled(
    scratch: Path, units: Sequence[str], flags: Sequence[str], dims: set[int], right: str = "", wrong: str = ""
) -> Path:
    """Compile some .cu files, bf16 and some head dimensions alone, `right` replaced by `wrong`."""
    sources = copy_sources(scratch, right, wrong)
    dispatch = sources / "score" / "launch.h"
    text = dispatch.read_text().replace("for_dim<fp16>(dim, f)", "-1")
    for dim in set(DIMS) - dims:
        text = text.replace(f"case {dim}:", f"case -{dim}:").replace(f"DimTag<{dim}>", f"DimTag<{min(dims)}>")
    dispatch.write_text(text)
    built = scratch / "libkvb.so"
    command = [compilers.gxx(), "-x", "c++", "-std=c++17", "-fPIC", "-shared", "-I", sources, *flags]
    subprocess.run([*command, *(unit(sources, name) for name in units), "-o", built], check=True)
    return built
