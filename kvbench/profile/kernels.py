"""Which kernel a cell is measured with: what "auto" stands for on this device."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from kvbench.profile.cells import Cell
from kvbench_kernels.backends import AttentionSpec, choose_backend

log = logging.getLogger(__name__)


def resolved(cells: Sequence[Cell], setting: Mapping[str, Any], device: str) -> list[Cell]:
    """The cells with the names of the kernels that will serve them, each once. Compiles a kernel if need be.

    Raises:
        ValueError: a kernel that was named cannot run here; says what is missing.
    """
    named = {kernel: _name(kernel, setting, device) for kernel in dict.fromkeys(cell.kernel for cell in cells)}
    made = [replace(cell, kernel=named[cell.kernel]) for cell in cells]
    return list({cell.id: cell for cell in made}.values())


def _name(kernel: str, setting: Mapping[str, Any], device: str) -> str:
    if setting["engine"]["cache"] == "masked":
        if kernel not in ("auto", "torch"):
            raise ValueError(f"kernel={kernel}: engine.cache=masked attends by torch alone; choose kernel=auto")
        return "torch"
    shape, declared = setting["shape"], setting["model"]["dtype"]
    if declared == "auto":  # as in the weights' file; no kernel tells the half precisions apart
        declared = "float32" if shape["itemsize"] == 4 else "bfloat16"
    group = shape["heads"] // shape["kv_heads"]
    chosen = choose_backend(
        kernel, AttentionSpec(torch.device(device), getattr(torch, declared), shape["head_dim"], group)
    )
    log.info("kernel=%s: %s (%s)", kernel, chosen.name, chosen.reason)
    return chosen.name
