"""Rows of a ragged cache on a CPU, written by our own C++ with all of torch's threads.

Shape suffixes: U KV heads, T tokens, S segments of an arena, S1 = S + 1, R slots, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench_kernels.ops.library import Library
from kvbench_kernels.ops.pointers import CPU_DTYPE, rows_of


class HostRows:
    """The functions of a library for CPUs that write rows of an arena."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def takes(self, *tensors: Tensor) -> bool:
        """Return True if `gather` takes keys and values like these."""
        return all(x.is_cpu and x.dtype in CPU_DTYPE and x.stride(-1) == 1 for x in tensors)

    def gather(
        self, k_UTD: Tensor, v_UTD: Tensor, keep_ST: Tensor, head_S: Tensor, start_S1: Tensor, k_RD: Tensor,
        v_RD: Tensor,
    ) -> None:  # fmt: skip
        """Write the kept tokens of every segment to its slots, and 0 to its other slots.

        Args:
            keep_ST: bool, contiguous.
            head_S: int32, the KV head of each segment.
            start_S1: int32, the first slot of each segment, and the end of the last one.
            k_RD, v_RD: contiguous; the slots of all segments are written, and no others.

        Raises:
            RuntimeError: a segment has fewer slots than tokens.
        """
        assert keep_ST.dtype == torch.bool
        assert keep_ST.is_contiguous()
        self._library.call(
            "cpu_gather",
            None,
            k=rows_of(k_UTD),
            v=rows_of(v_UTD),
            keep=keep_ST.data_ptr(),
            head=head_S.data_ptr(),
            start=start_S1.data_ptr(),
            k_to=k_RD.data_ptr(),
            v_to=v_RD.data_ptr(),
            tokens=keep_ST.shape[1],
            dim=k_RD.shape[1],
            segments=len(head_S),
            dtype=CPU_DTYPE[k_RD.dtype],
        )
