"""The protocol of kernels that take the place of torch in parts of methods.

Shape suffixes: H query heads, U KV heads, T tokens of the compressed span, W window queries, N tokens before the
window, D head dimension.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class ColumnKernel(Protocol):
    """A faster form of `LayerContext.column_sums`, equal to torch's result up to rounding."""

    def column_sums(
        self, q_HTD: Tensor, k_UTD: Tensor, *, scaling: float, lse_HT: Tensor | None = None
    ) -> Tensor | None:
        """Return [H, T] attention mass; None if torch must compute it, for example without the log-sum-exp.

        With the log-sum-exp of the queries' logits, the products are computed once instead of twice.
        """
        ...


class Kernels(ColumnKernel, Protocol):
    """Faster forms of some computations, equal to torch's results up to rounding (see `kvbench_kernels.ops.prompt`)."""

    def window_score(
        self, q_HWD: Tensor, k_UTD: Tensor, *, scaling: float, reduce: str, pooling: str, kernel_size: int,
        lse_HW: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return [U, N] scores, as `kvbench.methods.scores.window_attention` defines them.

        With the log-sum-exp of the queries' logits, the keys are read once instead of twice.
        """
        ...

    def select(self, score_UN: Tensor, total: int, floor: float, scope: str) -> Tensor:
        """Return the [U, N] mask of the best candidates, as `kvbench.methods.candidates.HeadSplit` splits them."""
        ...
