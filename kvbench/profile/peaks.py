"""Peak memory of a piece of work, read twice: after the prefill, and after decoding.

CUDA: bytes that torch's allocator has handed out, and reserved. CPU: resident memory of the process as Linux counts
it; elsewhere it is unknown, and None.
"""

from __future__ import annotations

import ctypes
import gc
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

_PROC = Path("/proc/self")


@dataclass(frozen=True)
class Peak:
    """Bytes. `base` is what was there before the work began: the weights, and on a CPU the program itself."""

    base: int
    prefill: int
    decode: int
    reserved: int | None = None  # most that the allocator held of the device, fragments included


class Meter(Protocol):
    """Measures one piece of work at a time."""

    kind: str

    def start(self) -> None:
        """Begin."""
        ...

    def prefilled(self) -> None:
        """The prompts are in the cache and the first token is known; what follows is decoding."""
        ...

    def read(self) -> Peak | None:
        """The end. Without a `prefilled` before it, both peaks are that of the whole."""
        ...


def meter(device: str) -> Meter:
    """The meter of a device, for all GPUs that torch sees: layers may be spread over them."""
    return CudaMeter() if device.startswith("cuda") else HostMeter()


class CudaMeter:
    """What torch's CUDA allocator counts."""

    kind = "allocated on the GPU"

    def start(self) -> None:
        gc.collect()  # the allocator keeps what it holds: asking the driver for it again would take time
        self._base, self._prefill = self._sum(torch.cuda.memory_allocated), 0
        self._devices(torch.cuda.reset_peak_memory_stats)
        self._reserved = 0

    def prefilled(self) -> None:
        self._prefill = self._sum(torch.cuda.max_memory_allocated)
        self._reserved = self._sum(torch.cuda.max_memory_reserved)
        self._devices(torch.cuda.reset_peak_memory_stats)

    def read(self) -> Peak:
        decode = self._sum(torch.cuda.max_memory_allocated)
        reserved = max(self._reserved, self._sum(torch.cuda.max_memory_reserved))
        return Peak(self._base, self._prefill or decode, decode, reserved)

    def _sum(self, of: object) -> int:
        return sum(self._devices(of))

    def _devices(self, of: object) -> list[int]:
        assert callable(of)
        return [of(index) or 0 for index in range(torch.cuda.device_count())]


class HostMeter:
    """The kernel's own high-water mark of resident memory, which a write to clear_refs sets back (man 5 proc)."""

    kind = "resident in the process"

    def start(self) -> None:
        release("cpu")
        self._base, self._prefill = self._status("VmRSS"), 0
        self._works = self._base > 0 and self._reset()

    def prefilled(self) -> None:
        if self._works:
            self._prefill = self._status("VmHWM")
            self._reset()

    def read(self) -> Peak | None:
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
            found = re.search(rf"^{name}:\s+(\d+) kB", (_PROC / "status").read_text(), re.MULTILINE)
        except OSError:
            return 0
        return 1024 * int(found[1]) if found else 0


def release(device: str) -> None:
    """Give back what is held for nothing, so that one cell's leftovers are not another's memory."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed pages
    except (OSError, AttributeError):
        return
