"""Backend `cpu`: append and attention in one call of our own C++ in float32 (csrc/decode/cpu_attend.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kvbench_kernels import build
from kvbench_kernels.backends.base import Buffers, Lanes
from kvbench_kernels.backends.packed import CpuPacked
from kvbench_kernels.backends.slabs import SlabBackend, products
from kvbench_kernels.ops.library import open_shared
from kvbench_kernels.ops.weights import least

HEAD_DIMS = (16, 32, 64, 80, 96, 128, 256)
MAX_QUERIES = 64  # of a KV head, group x tokens; for more of them matrix products are faster


class CpuBackend:
    """Attention that reads every live slot once. A row's result does not depend on the other rows of the batch."""

    name = "cpu"
    needs_bias = False
    prompt = None

    def __init__(self) -> None:
        self._library = library()
        self.packed = CpuPacked(self._library)
        self._for_many = SlabBackend("torch", products)

    def append_and_attend(
        self,
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        buffers: Buffers,
        lanes: Lanes,
        scaling: float,
        lengths: Callable[[], Sequence[int]] | None = None,
        settled: bool = False,
    ) -> Tensor:
        batch, heads, tokens, dim = q_BHTD.shape
        kv_heads = k_BUTD.shape[1]
        group = heads // kv_heads
        if group * tokens > MAX_QUERIES or q_BHTD.dtype != torch.float32:
            return self._for_many.append_and_attend(q_BHTD, k_BUTD, v_BUTD, buffers, lanes, scaling, lengths, settled)
        q_BHTD, k_BUTD, v_BUTD = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_BHTD, k_BUTD, v_BUTD))
        if k_BUTD.stride() != v_BUTD.stride():
            k_BUTD, v_BUTD = k_BUTD.contiguous(), v_BUTD.contiguous()
        out_BTHD = q_BHTD.new_empty(batch, tokens, heads, dim)
        sizes = len(lanes.segment_N), group, tokens, dim
        scratch = torch.empty(
            self._library.kvb_cpu_scratch(buffers.length_S.data_ptr(), lanes.segment_N.data_ptr(), *sizes),
            dtype=torch.uint8,
        )
        code = self._library.kvb_cpu_attend(
            q_BHTD.data_ptr(),
            (ctypes.c_int64 * 3)(*q_BHTD.stride()[:3]),
            k_BUTD.data_ptr(),
            v_BUTD.data_ptr(),
            (ctypes.c_int64 * 3)(*k_BUTD.stride()[:3]),
            buffers.k_RD.data_ptr(),
            buffers.v_RD.data_ptr(),
            buffers.start_S1.data_ptr(),
            buffers.length_S.data_ptr(),
            lanes.segment_N.data_ptr(),
            out_BTHD.data_ptr(),
            scratch.data_ptr(),
            batch,
            kv_heads,
            *sizes[1:],
            scaling,
        )
        if code:
            raise RuntimeError(f"segment {code - 1} of a ragged cache had no room, or head dimension {dim}")
        return out_BTHD.transpose(1, 2)

    def weights(self, q_NGTD: Tensor, buffers: Buffers, lanes: Lanes, scaling: float, width: int) -> Tensor:
        lane_count, group, tokens, dim = q_NGTD.shape
        if dim not in HEAD_DIMS or q_NGTD.dtype != torch.float32 or buffers.k_RD.dtype != torch.float32:
            return self._for_many.weights(q_NGTD, buffers, lanes, scaling, width)
        q_NGTD = q_NGTD.contiguous()
        out_NGTC = q_NGTD.new_empty(lane_count, group, tokens, width)
        code = self._library.kvb_cpu_weights(
            q_NGTD.data_ptr(),
            buffers.k_RD.data_ptr(),
            buffers.start_S1.data_ptr(),
            buffers.length_S.data_ptr(),
            lanes.segment_N.data_ptr(),
            out_NGTC.data_ptr(),
            lane_count,
            group,
            tokens,
            dim,
            width,
            scaling,
        )
        if code:
            raise RuntimeError(f"a segment is longer than {width} slots, or head dimension {dim}")
        return out_NGTC

    def least(self, worth_BUC: Tensor, pos_BUC: Tensor, length_BU: Tensor) -> Tensor:
        if worth_BUC.dtype != torch.float32:
            return least(worth_BUC, pos_BUC, length_BU)
        worth_BUC = worth_BUC.contiguous()
        column_BU = torch.empty_like(length_BU)
        self._library.kvb_cpu_least(
            worth_BUC.data_ptr(),
            pos_BUC.data_ptr(),
            length_BU.data_ptr(),
            column_BU.data_ptr(),
            column_BU.numel(),
            worth_BUC.shape[-1],
        )
        return column_BU


@cache
def library() -> Any:
    """Load the compiled functions; g++ compiles them at the first use.

    Raises:
        ValueError: there is no g++, or the cache cannot be written.
        RuntimeError: they do not compile, or do not find the OpenMP functions of this torch.
    """
    opened = open_shared(build.cpu())
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    opened.kvb_cpu_scratch.restype = number
    opened.kvb_cpu_scratch.argtypes = [pointer, pointer, *[number] * 4]
    opened.kvb_cpu_attend.restype = ctypes.c_int
    opened.kvb_cpu_attend.argtypes = [*[pointer] * 12, *[number] * 5, ctypes.c_float]
    opened.kvb_cpu_weights.restype = ctypes.c_int
    opened.kvb_cpu_weights.argtypes = [*[pointer] * 6, *[number] * 5, ctypes.c_float]
    opened.kvb_cpu_least.restype = None
    opened.kvb_cpu_least.argtypes = [*[pointer] * 4, *[number] * 2]
    opened.kvb_cpu_packed_scratch.restype = number
    opened.kvb_cpu_packed_scratch.argtypes = [pointer, *[number] * 4]
    opened.kvb_cpu_packed.restype = ctypes.c_int
    opened.kvb_cpu_packed.argtypes = [*[pointer] * 17, *[number] * 9, ctypes.c_float]
    return opened
