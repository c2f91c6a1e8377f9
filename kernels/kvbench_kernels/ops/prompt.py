"""The kernels for prompts: they score a prompt's tokens, select some of them, and move those to an arena.

Shape suffixes: H query heads, U KV heads, T tokens, W window queries, N candidates, S segments of an arena, S1 = S + 1,
M segments of another arena, R slots, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench_kernels.ops.require import rows

kvb = torch.ops.kvb


class PromptKernels:
    """The ops of `kvb` for prompts, with the arguments that methods and caches have."""

    def window_score(
        self, q_HWD: Tensor, k_UTD: Tensor, *, scaling: float, reduce: str, pooling: str, kernel_size: int,
        lse_HW: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the attention of the last W tokens to the others, fp32 [U, T - W].

        It is averaged over the W tokens, reduced over the group of query heads, then pooled along the tokens. With the
        log-sum-exp of the queries' logits, the keys are read once instead of twice.
        """
        q_HWD, k_UTD = rows(q_HWD), rows(k_UTD)
        score: Tensor = kvb.window_score(q_HWD, k_UTD, lse_HW, scaling, reduce, pooling, kernel_size)
        return score

    def column_sums(self, q_HTD: Tensor, k_UTD: Tensor, *, scaling: float, lse_HT: Tensor | None = None) -> Tensor:
        """Return the causal attention that every key receives from all queries, fp32 [H, T].

        With the log-sum-exp of the queries' logits, the products are computed once instead of twice.
        """
        q_HTD, k_UTD = rows(q_HTD), rows(k_UTD)
        if lse_HT is None:
            lse_HT = kvb.row_lse(q_HTD, k_UTD, scaling)
        sums: Tensor = kvb.column_sums(q_HTD, k_UTD, lse_HT, scaling)
        return sums

    def select(self, score_UN: Tensor, total: int, floor: float, scope: str) -> Tensor:
        """Return the keep mask of the best `total` candidates, bool [U, N].

        Scope "head" splits the total evenly over heads; "layer" by how many of the layer's best each head holds.
        """
        keep: Tensor = kvb.select(score_UN, total, floor, scope)[0]
        return keep

    def gather(
        self, k_UTD: Tensor, v_UTD: Tensor, keep_ST: Tensor, head_S: Tensor, start_S1: Tensor, slots: int
    ) -> tuple[Tensor, Tensor]:
        """Return buffers of `slots` slots with the kept tokens of every segment. Other slots are not written."""
        k_RD, v_RD = (x.new_empty(slots, x.shape[2]) for x in (k_UTD, v_UTD))
        kvb.ragged_gather(rows(k_UTD), rows(v_UTD), keep_ST, head_S, start_S1, k_RD, v_RD)
        return k_RD, v_RD

    def relayout(
        self, k_RD: Tensor, v_RD: Tensor, start_S1: Tensor, length_S: Tensor, source_M: Tensor, start_M1: Tensor,
        slots: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return new buffers that have the live slots of segment source_M[m] at place m."""
        new = k_RD.new_empty(slots, k_RD.shape[1]), v_RD.new_empty(slots, v_RD.shape[1])
        kvb.ragged_relayout(k_RD, v_RD, start_S1, length_S, source_M, start_M1, *new)
        return new
