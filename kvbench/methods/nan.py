"""The search for NaN where it costs nothing."""

from __future__ import annotations

from torch import Tensor


def has_nan(x: Tensor) -> bool:
    """Return True if there is NaN in a tensor on a CPU. On other devices the host would have to wait: False."""
    return x.device.type == "cpu" and bool(x.isnan().any())
