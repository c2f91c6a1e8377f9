"""Float32 products on a CPU by oneDNN, where MKL uses half of the vector width.

torch computes float32 products with MKL, which takes its AVX-512 paths on Intel's processors alone. On others, oneDNN,
which is in torch as well, is about twice as fast, and reads the same weights. With a single token that depends on how
fast memory is: on one machine both took the same time, on another oneDNN took half of MKL's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

CPU = Path("/proc/cpuinfo")


def fast_products(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which `F.linear` is oneDNN's where that is faster, for a forward call over tokens [B, T]."""
    if x.device.type != "cpu" or not is_faster():
        return nullcontext()
    return _Products()


def linear(x: Tensor, weight_OC: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return `F.linear`, by oneDNN where that is faster."""
    return _by_onednn(x, weight_OC, bias_O) if _takes(x, weight_OC) and is_faster() else F.linear(x, weight_OC, bias_O)


@cache
def is_faster() -> bool:
    """Return True on processors with AVX-512 that are not Intel's, if this torch has oneDNN's product."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return "AVX512" in torch.backends.cpu.get_cpu_capability() and "GenuineIntel" not in _cpu()


def _cpu() -> str:
    """Return the description of the processor; without one, a name that keeps torch's own products."""
    try:
        return CPU.read_text(encoding="utf-8", errors="replace")[:4096]
    except OSError:
        return "GenuineIntel"


class _Products(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs:
            x, weight_OC, *bias = args
            if _takes(x, weight_OC):
                return _by_onednn(x, weight_OC, *(bias or (None,)))
        return func(*args, **(kwargs or {}))


def _takes(x: Tensor, weight_OC: Tensor) -> bool:
    return x.dtype is weight_OC.dtype is torch.float32 and weight_OC.dim() == 2 and x.device.type == "cpu"


def _by_onednn(x: Tensor, weight_OC: Tensor, bias_O: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_OC, bias_O, "none", [], "")
    return out
