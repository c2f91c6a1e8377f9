"""The protocol of kernels that take the place of torch in parts of methods.

Shape suffixes: H query heads, U KV heads, T tokens of the compressed span, W window queries, Q queries, N tokens before
the window, D head dimension, E hidden size.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Kernels(Protocol):
    """Faster forms of some computations, equal to torch's results up to rounding (see `kvbench_kernels.ops.prompt`)."""

    def window_score(
        self, q_HWD: Tensor, k_UTD: Tensor, *, scaling: float, reduce: str, pooling: str, kernel_size: int,
        lse_HW: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return [U, N] scores, as `kvbench.methods.scores.window_attention` defines them.

        With the log-sum-exp of the queries' logits, the keys are read once instead of twice.
        """
        ...

    def column_sums(self, q_HTD: Tensor, k_UTD: Tensor, *, scaling: float, lse_HT: Tensor | None = None) -> Tensor:
        """Return [H, T] attention mass, as `LayerContext.column_sums` defines it.

        With the log-sum-exp of the queries' logits, the products are computed once instead of twice.
        """
        ...

    def select(self, score_UN: Tensor, total: int, floor: float, scope: str) -> Tensor:
        """Return the [U, N] mask of the best candidates, as `kvbench.methods.candidates.HeadSplit` splits them."""
        ...


class SumKernels(Protocol):
    """Forms of some computations that write no logits. They return None where torch must do the work."""

    def column_sums(
        self, q_HTD: Tensor, k_UTD: Tensor, *, scaling: float, lse_HT: Tensor | None = None
    ) -> Tensor | None:
        """Return [H, T] attention mass, as `LayerContext.column_sums` defines it.

        With the log-sum-exp of the queries' logits, the products are computed once instead of twice.
        """
        ...

    def query_weights(
        self, q_HQD: Tensor, k_UTD: Tensor, *, scaling: float, lse_HQ: Tensor | None = None
    ) -> Tensor | None:
        """Return [H, Q, T]: the causal attention of the last Q of T tokens."""
        ...

    def output_norms(self, v_UTD: Tensor, weight_HDE: Tensor) -> Tensor | None:
        """Return [H, T]: the L1 norm of each value times the output weights of each query head."""
        ...
