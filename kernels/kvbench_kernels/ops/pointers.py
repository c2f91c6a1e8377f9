"""Tensors as the C functions take them: a pointer with strides (in elements), and the number of a dtype."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPE = {torch.bfloat16: 0, torch.float16: 1}
CPU_DTYPE = {torch.bfloat16: 0, torch.float32: 2}


def strided(x: Tensor) -> tuple[int, ...]:
    """Return the pointer and the outer strides of a tensor of four dimensions."""
    return x.data_ptr(), *x.stride()[:3]


def rows_of(x: Tensor) -> tuple[int, ...]:
    """Return the pointer and the outer strides of a tensor of three dimensions."""
    return x.data_ptr(), *x.stride()[:2]


def row_of(x: Tensor) -> tuple[int, int]:
    """Return the pointer and the outer stride of a tensor of two dimensions."""
    return x.data_ptr(), x.stride(0)
