"""The clock of the engine's timings."""

from __future__ import annotations

import time

import torch


def now(device: torch.device) -> float:
    """Return the wall clock in seconds, after everything queued on the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
