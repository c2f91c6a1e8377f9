"""The kernel that a cell is measured with: the name that "auto" stands for on this device."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from kvbench.profile.cells import Cell
from kvbench_kernels.backends import AttentionSpec, choose_backend

log = logging.getLogger(__name__)


def with_kernels(cells: Sequence[Cell], setting: Mapping[str, Any], device: str) -> list[Cell]:
    """Replace "auto" by the kernel that it stands for, and drop cells that become equal. Compiles a kernel if needed.

    Raises:
        ValueError: a kernel cannot run here; the message says what is missing.
    """
    names = {kernel: _name(kernel, setting, device) for kernel in dict.fromkeys(cell.kernel for cell in cells)}
    named = [replace(cell, kernel=names[cell.kernel]) for cell in cells]
    return list({cell.id: cell for cell in named}.values())


def _name(kernel: str, setting: Mapping[str, Any], device: str) -> str:
    if setting["engine"]["cache"] == "masked":  # attends by torch; config.check allows no other kernel
        return "torch"
    shape, dtype = setting["shape"], setting["model"]["dtype"]
    if dtype == "auto":  # the dtype of the weights' file; all kernels treat the two half precisions alike
        dtype = "float32" if shape["itemsize"] == 4 else "bfloat16"
    group = shape["heads"] // shape["kv_heads"]
    spec = AttentionSpec(torch.device(device), getattr(torch, dtype), shape["head_dim"], group)
    chosen = choose_backend(kernel, spec)
    log.info("kernel=%s: %s (%s)", kernel, chosen.name, chosen.reason)
    return chosen.name
