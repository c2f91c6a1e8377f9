"""Backend `cpu`: append and attention in one call of our own C++ (csrc/decode/cpu_attend.cpp)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kvbench_kernels.backends.base import Backend, Buffers, Lanes
from kvbench_kernels.backends.packed import CpuPacked
from kvbench_kernels.backends.slabs import SlabBackend, products
from kvbench_kernels.ops.host_library import host_library
from kvbench_kernels.ops.host_rows import HostRows
from kvbench_kernels.ops.host_sums import HostSums
from kvbench_kernels.ops.pointers import CPU_DTYPE, strided
from kvbench_kernels.ops.weights import launch, least

DTYPES = tuple(CPU_DTYPE)
HEAD_DIMS = (16, 32, 64, 80, 96, 128, 256)
MAX_QUERIES = 512  # of a KV head, group x tokens: their results need about as much memory as keys and values


class CpuBackend(Backend):
    """Attention that reads every live slot once. A row's result does not depend on the other rows of the batch."""

    name = "cpu"
    needs_bias = False

    def __init__(self) -> None:
        self._library = host_library()
        self.host = HostRows(self._library)
        self.sums = HostSums(self._library)
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
        if group * tokens > MAX_QUERIES or q_BHTD.dtype not in DTYPES:
            return self._for_many.append_and_attend(q_BHTD, k_BUTD, v_BUTD, buffers, lanes, scaling, lengths, settled)
        q_BHTD, k_BUTD, v_BUTD = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_BHTD, k_BUTD, v_BUTD))
        out_BHTD = q_BHTD.new_empty(batch, tokens, heads, dim).transpose(1, 2)
        length, segment = buffers.length_S.data_ptr(), lanes.segment_N.data_ptr()
        bytes_ = self._library.size("cpu_workspace", length, segment, len(lanes.segment_N), group, tokens, dim)
        workspace = torch.empty(bytes_, dtype=torch.uint8)
        self._library.call(
            "cpu_attend",
            None,
            q=strided(q_BHTD),
            out=strided(out_BHTD),
            k_new=strided(k_BUTD),
            v_new=strided(v_BUTD),
            k=buffers.k_RD.data_ptr(),
            v=buffers.v_RD.data_ptr(),
            start=buffers.start_S1.data_ptr(),
            length=length,
            segment=segment,
            lse=None,
            workspace=workspace.data_ptr(),
            status=buffers.status.data_ptr(),
            scaling=scaling,
            batch=batch,
            kv_heads=kv_heads,
            group=group,
            tokens=tokens,
            dim=dim,
            ctas=0,
            wide=0,
            dtype=CPU_DTYPE[q_BHTD.dtype],
            settled=settled,
        )
        buffers.check()
        return out_BHTD

    def weights(self, q_NGTD: Tensor, buffers: Buffers, lanes: Lanes, scaling: float, width: int) -> Tensor:
        if q_NGTD.shape[3] not in HEAD_DIMS or q_NGTD.dtype not in DTYPES or buffers.k_RD.dtype != q_NGTD.dtype:
            return self._for_many.weights(q_NGTD, buffers, lanes, scaling, width)
        arena = buffers.k_RD, buffers.start_S1, buffers.length_S, lanes.segment_N
        q_NGTD = q_NGTD.contiguous()
        return launch(self._library, None, q_NGTD, *arena, scaling, width, name="cpu_weights", dtypes=CPU_DTYPE)

    def least(self, worth_BUC: Tensor, pos_BUC: Tensor, length_BU: Tensor) -> Tensor:
        if worth_BUC.dtype != torch.float32:
            return least(worth_BUC, pos_BUC, length_BU)
        worth_BUC = worth_BUC.expand_as(pos_BUC)  # raises if it has another shape
        worth_BUC, pos_BUC, length_BU = (x.contiguous() for x in (worth_BUC, pos_BUC, length_BU))
        column_BU = torch.empty_like(length_BU)
        self._library.call(
            "cpu_least",
            None,
            worth=worth_BUC.data_ptr(),
            pos=pos_BUC.data_ptr(),
            length=length_BU.data_ptr(),
            column=column_BU.data_ptr(),
            heads=column_BU.numel(),
            width=worth_BUC.shape[-1],
        )
        return column_BU
