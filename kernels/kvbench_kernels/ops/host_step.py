"""The small ops of a decode step on a CPU, by our own C++ (csrc/step/cpu_step.cpp), for float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kvbench_kernels.ops import checks, launch
from kvbench_kernels.ops.library import Library
from kvbench_kernels.ops.pointers import CPU_DTYPE


def call_of(op: str, library: Callable[[], Library]) -> Callable[..., Any]:
    """Return a function that calls kvb_cpu_<op> of a library with the arguments of the op.

    It raises ValueError for tensors that the function cannot read.
    """
    check, compiled = getattr(checks, op), getattr(launch, op)

    def on_cpu(*arguments: Any) -> Any:
        check(*arguments, compiled=False)
        for x in arguments:
            if isinstance(x, Tensor) and (x.dtype not in CPU_DTYPE or x.stride(-1) != 1):
                raise ValueError(f"kvb::cpu_{op}: takes contiguous rows of float32 or bfloat16")
        return compiled(library(), None, *arguments, name=f"cpu_{op}", dtypes=CPU_DTYPE)

    return on_cpu
