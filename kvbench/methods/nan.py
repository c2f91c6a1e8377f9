"""The search for NaN where it costs nothing."""

from __future__ import annotations

from torch import Tensor


def has_nan(x: Tensor) -> bool:
    """Return True if there is NaN in a tensor on a CPU. On other devices the host would have to wait: False."""
    if x.device.type != "cpu" or not bool(x.sum().isnan()):  # a sum is NaN if a number is, and takes less time to find
        return False
    return bool(x.isnan().any())
