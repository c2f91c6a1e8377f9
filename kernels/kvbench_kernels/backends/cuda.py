"""Backend `cuda`: append and attention in one launch of our own kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kvbench_kernels import ops
from kvbench_kernels.backends.base import Backend, Buffers, Lanes
from kvbench_kernels.backends.packed import CudaPacked
from kvbench_kernels.ops.prompt import PromptKernels


class CudaBackend(Backend):
    """Attention by `ragged_append_decode`. A step can be captured in a CUDA graph after one outside a capture.

    The calls share a workspace, so no two may run at the same time: use one stream, or let one call finish first.
    """

    name = "cuda"
    needs_bias = False
    prompt = PromptKernels()
    packed = CudaPacked()

    def __init__(self) -> None:
        self._scratch: dict[tuple[torch.device, int], Tensor] = {}

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
        # [B, T, H, D] in memory, as the model's output projection reads it
        out_BHTD = q_BHTD.new_empty(batch, tokens, heads, dim).transpose(1, 2)
        torch.ops.kvb.ragged_append_decode(
            ops.rows(q_BHTD),
            ops.rows(k_BUTD),
            ops.rows(v_BUTD),
            buffers.k_RD,
            buffers.v_RD,
            buffers.start_S1,
            buffers.length_S,
            lanes.segment_N,
            scaling,
            out_BHTD,
            self._workspace(dim, q_BHTD.device),
            buffers.status,
            settled,
        )
        return out_BHTD

    def weights(self, q_NGTD: Tensor, buffers: Buffers, lanes: Lanes, scaling: float, width: int) -> Tensor:
        weights_NGTC: Tensor = torch.ops.kvb.decode_weights(
            q_NGTD.contiguous(), buffers.k_RD, buffers.start_S1, buffers.length_S, lanes.segment_N, scaling, width
        )
        return weights_NGTC

    def _workspace(self, dim: int, device: torch.device) -> Tensor:
        if (device, dim) not in self._scratch:
            self._scratch[device, dim] = ops.workspace(dim, device)
        return self._scratch[device, dim]
