"""What our kernels do with a prompt: score its tokens, choose among them, and move what stays.

Shape suffixes: H query heads, U KV heads, T tokens, W window queries, N candidates, S segments of an arena, S1 = S + 1,
M segments of another arena, R slots, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench_kernels.ops.require import rows

kvb = torch.ops.kvb


class PromptKernels:
    """The ops of `kvb` for prompts, with their arguments as a method or a cache has them."""

    def window_score(
        self, q_HWD: Tensor, k_UTD: Tensor, *, scaling: float, reduce: str, pooling: str, kernel_size: int
    ) -> Tensor:
        """[U, T - W] fp32: attention of the last W tokens, mean over them, reduced over the group, then pooled."""
        q_HWD, k_UTD = rows(q_HWD), rows(k_UTD)
        score: Tensor = kvb.window_score(q_HWD, k_UTD, None, scaling, reduce, pooling, kernel_size)
        return score

    def column_sums(self, q_HTD: Tensor, k_UTD: Tensor, *, scaling: float) -> Tensor:
        """[H, T] fp32: attention that every key gets from all queries, causal."""
        q_HTD, k_UTD = rows(q_HTD), rows(k_UTD)
        sums: Tensor = kvb.column_sums(q_HTD, k_UTD, kvb.row_lse(q_HTD, k_UTD, scaling), scaling)
        return sums

    def select(self, score_UN: Tensor, total: int, floor: float, scope: str) -> Tensor:
        """Bool [U, N]: the best `total` candidates, split over heads evenly ("head") or by what they hold ("layer")."""
        keep: Tensor = kvb.select(score_UN, total, floor, scope)[0]
        return keep

    def gather(
        self, k_UTD: Tensor, v_UTD: Tensor, keep_ST: Tensor, head_S: Tensor, start_S1: Tensor, slots: int
    ) -> tuple[Tensor, Tensor]:
        """Buffers of `slots` slots with the kept tokens of every segment; the others are not written."""
        k_RD, v_RD = (x.new_empty(slots, x.shape[2]) for x in (k_UTD, v_UTD))
        kvb.ragged_gather(rows(k_UTD), rows(v_UTD), keep_ST, head_S, start_S1, k_RD, v_RD)
        return k_RD, v_RD

    def relayout(
        self, k_RD: Tensor, v_RD: Tensor, start_S1: Tensor, length_S: Tensor, source_M: Tensor, start_M1: Tensor,
        slots: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """New buffers, with the live slots of segment source_M[m] at place m."""
        new = k_RD.new_empty(slots, k_RD.shape[1]), v_RD.new_empty(slots, v_RD.shape[1])
        kvb.ragged_relayout(k_RD, v_RD, start_S1, length_S, source_M, start_M1, *new)
        return new
