"""Which kernel a cell is measured with: what "auto" stands for on this device."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import torch

from kvbench.engine.decode import stream
from kvbench.profile.cells import Cell
from kvbench_kernels.backends import Use, choose

log = logging.getLogger(__name__)


def engine_takes_kernel() -> bool:
    """Whether the engine can be told which kernel to decode by."""
    return "kernel" in signature(stream).parameters


def resolved(cells: Sequence[Cell], setting: Mapping[str, Any], device: str) -> list[Cell]:
    """The cells with the names of the kernels that will serve them, each once.

    Raises:
        ValueError: a kernel that was named cannot run here; says what is missing.
    """
    named = {kernel: _name(kernel, setting, device) for kernel in dict.fromkeys(cell.kernel for cell in cells)}
    made = [replace(cell, kernel=named[cell.kernel]) for cell in cells]
    return list({cell.id: cell for cell in made}.values())


def _name(kernel: str, setting: Mapping[str, Any], device: str) -> str:
    if setting["engine"]["cache"] != "ragged" or not engine_takes_kernel():
        if kernel not in ("auto", "torch"):
            raise ValueError(f"kernel={kernel}: this engine and cache decode by torch alone; choose auto or torch")
        return "torch"
    shape = setting["shape"]
    dtype = torch.bfloat16 if shape["itemsize"] == 2 else torch.float32  # no kernel tells the half precisions apart
    chosen = choose(kernel, Use(torch.device(device), dtype, shape["head_dim"], shape["heads"] // shape["kv_heads"]))
    log.info("kernel=%s: %s (%s)", kernel, chosen.name, chosen.reason)
    return chosen.name
