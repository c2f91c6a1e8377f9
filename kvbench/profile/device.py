"""The device that is measured: its name, and how fast it copies memory."""

from __future__ import annotations

import platform
import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch

_CUDA_BYTES, _HOST_BYTES = 2**30, 2**28  # far beyond any cache
_COPIES = 15


def facts(device: str) -> dict[str, Any]:
    """Name and size of a device, JSON-able; of a CPU also the threads that torch uses."""
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(torch.device(device))
        return {"type": "cuda", "name": properties.name, "memory": properties.total_memory}
    return {"type": "cpu", "name": _cpu_name(), "threads": torch.get_num_threads()}


def copy_bandwidth(device: str) -> float:
    """Bytes per second, read and written together, of a large copy on the device: the median of several."""
    cuda = device.startswith("cuda")
    source = torch.zeros(_CUDA_BYTES if cuda else _HOST_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = []
    for _ in range(_COPIES):
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        target.copy_(source)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return 2 * source.nbytes / statistics.median(seconds)


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
