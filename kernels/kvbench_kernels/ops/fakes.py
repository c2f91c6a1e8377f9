"""Shapes and dtypes of what the ops return, for tracing (torch.compile). Shape suffixes as in `reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench_kernels.ops.weights import fake as decode_weights  # noqa: F401


def window_score(
    q_HWD: Tensor, k_UTD: Tensor, lse_HW: Tensor | None, scaling: float, group: str, pool: str, kernel_size: int
) -> Tensor:
    return k_UTD.new_empty(k_UTD.shape[0], k_UTD.shape[1] - q_HWD.shape[1], dtype=_wide(q_HWD.dtype))


def row_lse(q_HTD: Tensor, k_UTD: Tensor, scaling: float) -> Tensor:
    return q_HTD.new_empty(q_HTD.shape[:2], dtype=_wide(q_HTD.dtype))


def column_sums(q_HTD: Tensor, k_UTD: Tensor, lse_HT: Tensor, scaling: float) -> Tensor:
    return q_HTD.new_empty(q_HTD.shape[:2], dtype=_wide(q_HTD.dtype))


def select(score_UN: Tensor, total: int, floor: float, scope: str) -> tuple[Tensor, Tensor]:
    keep_UN = score_UN.new_empty(score_UN.shape, dtype=torch.bool)
    return keep_UN, score_UN.new_empty(score_UN.shape[:1], dtype=torch.int32)


def add_rms_norm(residual_NC: Tensor, x_NC: Tensor | None, weight_C: Tensor, eps: float) -> Tensor:
    return torch.empty_like(residual_NC, memory_format=torch.contiguous_format)


def silu_mul(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    return torch.empty_like(gate_NF, memory_format=torch.contiguous_format)


def linear(x_NC: Tensor, weight_OC: Tensor, bias_O: Tensor | None, gated: bool, early: bool) -> Tensor:
    return x_NC.new_empty(x_NC.shape[0], weight_OC.shape[0] // (2 if gated else 1))


def linear_rope(
    x_NC: Tensor, weight_OC: Tensor, bias_O: Tensor | None, cos_ND: Tensor, sin_ND: Tensor, heads: int, early: bool
) -> Tensor:  # fmt: skip
    return x_NC.new_empty(x_NC.shape[0], weight_OC.shape[0])


def in_place(*arguments: object) -> None:
    """Return nothing, as all other ops do."""


ragged_append = ragged_decode = ragged_append_decode = ragged_gather = ragged_relayout = rope = packed_decode = in_place


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
