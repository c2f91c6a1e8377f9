"""The measured device: its name, and how fast it copies memory."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from kvbench.run.hardware import cpu_name

_CUDA_BYTES, _HOST_BYTES = 2**30, 2**28  # much larger than any cache
_COPIES = 15


def facts(device: str) -> dict[str, Any]:
    """Return name and size of a GPU, or name and torch's threads of a CPU; JSON-able."""
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(torch.device(device))
        return {"type": "cuda", "name": properties.name, "memory": properties.total_memory}
    return {"type": "cpu", "name": cpu_name(), "threads": torch.get_num_threads()}


def copy_bandwidth(device: str) -> float:
    """Return the bytes per second, read and written together, of a large copy on the device: the median of several."""
    cuda = device.startswith("cuda")
    source = torch.zeros(_CUDA_BYTES if cuda else _HOST_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = []
    for _ in range(_COPIES):
        if cuda:
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        target.copy_(source)
        if cuda:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return 2 * source.nbytes / statistics.median(seconds)
