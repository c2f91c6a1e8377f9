"""Peak memory of a measurement, read twice: after the prefill, and after decoding.

On a GPU it is what torch's allocator has allocated and reserved. On a CPU it is the resident memory of the process as
Linux counts it; on other systems it is not known.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

_PROC = Path("/proc/self")


@dataclass(frozen=True)
class Peak:
    """Memory in bytes. `base` was used before the work began: by the weights, and on a CPU by the program itself."""

    base: int
    prefill: int
    decode: int
    reserved: int | None = None  # the most that the allocator has reserved, fragments included


class Meter(Protocol):
    """A meter of one piece of work at a time."""

    kind: str

    def start(self) -> None:
        """Begin a measurement."""
        ...

    def prefilled(self) -> None:
        """Note that the prompts are in the cache and the first tokens are known; decoding follows."""
        ...

    def read(self) -> Peak | None:
        """End the measurement and return its peaks, or None if they are not known.

        Without a `prefilled` before it, both peaks are that of the whole work.
        """
        ...


def meter(device: str) -> Meter:
    """Return the meter of a device. It covers all GPUs that torch finds, because layers may be spread over them."""
    return CudaMeter() if device.startswith("cuda") else HostMeter()


class CudaMeter:
    """The memory that torch's CUDA allocator counts."""

    kind = "allocated on the GPU"

    def __init__(self) -> None:
        self._base = self._prefill = self._reserved = 0

    def start(self) -> None:
        """Begin a measurement."""
        gc.collect()  # the allocator keeps its memory: to get it from the driver again would take time
        self._base, self._prefill = self._sum(torch.cuda.memory_allocated), 0
        _reset_cuda_peaks()
        self._reserved = 0

    def prefilled(self) -> None:
        """Note the end of the prefill."""
        self._prefill = self._sum(torch.cuda.max_memory_allocated)
        self._reserved = self._sum(torch.cuda.max_memory_reserved)
        _reset_cuda_peaks()

    def read(self) -> Peak:
        """Return the peaks."""
        decode = self._sum(torch.cuda.max_memory_allocated)
        reserved = max(self._reserved, self._sum(torch.cuda.max_memory_reserved))
        return Peak(self._base, self._prefill or decode, decode, reserved)

    def _sum(self, count: Callable[[int], int]) -> int:
        return sum(count(index) for index in range(torch.cuda.device_count()))


def _reset_cuda_peaks() -> None:
    for index in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(index)


class HostMeter:
    """The operating system's high-water mark of resident memory; a write to clear_refs resets it (man 5 proc)."""

    kind = "resident in the process"

    def __init__(self) -> None:
        self._base = self._prefill = 0
        self._works = False

    def start(self) -> None:
        """Begin a measurement."""
        release("cpu")
        self._base, self._prefill = self._status("VmRSS"), 0
        self._works = self._base > 0 and self._reset()

    def prefilled(self) -> None:
        """Note the end of the prefill."""
        if self._works:
            self._prefill = self._status("VmHWM")
            self._reset()

    def read(self) -> Peak | None:
        """Return the peaks; None if this system does not tell them."""
        if not self._works:
            return None
        decode = self._status("VmHWM")
        return Peak(self._base, self._prefill or decode, decode)

    def _reset(self) -> bool:
        try:
            (_PROC / "clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def _status(self, name: str) -> int:
        try:
            line = re.search(rf"^{name}:\s+(\d+) kB", (_PROC / "status").read_text(), re.MULTILINE)
        except OSError:
            return 0
        return 1024 * int(line[1]) if line else 0


def release(device: str) -> None:
    """Free memory that is held but not used, so that one cell does not count as memory of the next."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps pages that were freed
    except (OSError, AttributeError):
        return
