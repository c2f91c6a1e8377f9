"""Pooling of scores over neighbouring tokens."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from kvbench.methods.fields import InvalidField, check_at_least, check_one_of

POOLINGS = ("avg", "max", "none")


def check_pooling(part: Any) -> None:
    """Raise InvalidField if the part's fields `kernel_size` and `pooling` are none that `pool` takes."""
    check_at_least(part, "kernel_size", 1)
    if part.kernel_size % 2 == 0:
        raise InvalidField("kernel_size", part.kernel_size, "must be odd, so that pooling keeps the length")
    check_one_of(part, "pooling", POOLINGS)


def pool(x_UN: Tensor, pooling: str, kernel_size: int) -> Tensor:
    """Pool along tokens, stride 1, same length. The average divides by `kernel_size` also at the borders."""
    if pooling == "none" or x_UN.shape[-1] == 0:
        return x_UN
    half = kernel_size // 2
    if pooling == "max":
        # max_pool1d pads with -inf and wants half the kernel at least once inside the input
        return F.max_pool1d(x_UN[None], kernel_size, stride=1, padding=half)[0]
    return F.avg_pool1d(x_UN[None], kernel_size, stride=1, padding=half, count_include_pad=True)[0]
