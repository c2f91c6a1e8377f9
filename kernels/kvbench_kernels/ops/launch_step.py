"""Calls of the compiled functions between the attentions of a decode step. Everything is as in `launch`.

The first three also call those of the CPU, whose structs are the same: `name` and `dtypes` say which.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kvbench_kernels.ops.library import Library
from kvbench_kernels.ops.pointers import DTYPE, row_of, rows_of


def add_rms_norm(
    library: Library, stream: int | None, residual_NC: Tensor, x_NC: Tensor | None, weight_C: Tensor, eps: float, *,
    name: str = "add_rms_norm", dtypes: Mapping[torch.dtype, int] = DTYPE,
) -> Tensor:  # fmt: skip
    out_NC = torch.empty_like(residual_NC, memory_format=torch.contiguous_format)
    if out_NC.numel() == 0:
        return out_NC
    rows, dim = residual_NC.shape
    library.call(
        name,
        stream,
        residual=row_of(residual_NC),
        x=(None, 0) if x_NC is None else row_of(x_NC),
        weight=weight_C.data_ptr(),
        out=out_NC.data_ptr(),
        eps=eps,
        rows=rows,
        dim=dim,
        dtype=dtypes[residual_NC.dtype],
    )
    return out_NC


def rope(
    library: Library, stream: int | None, q_NHD: Tensor, k_NUD: Tensor, cos_ND: Tensor, sin_ND: Tensor,
    q_weight_D: Tensor | None, k_weight_D: Tensor | None, eps: float, *, name: str = "rope",
    dtypes: Mapping[torch.dtype, int] = DTYPE,
) -> None:  # fmt: skip
    rows, heads, dim = q_NHD.shape
    if rows == 0:
        return
    library.call(
        name,
        stream,
        q=rows_of(q_NHD),
        k=rows_of(k_NUD),
        cos=row_of(cos_ND),
        sin=row_of(sin_ND),
        q_weight=None if q_weight_D is None else q_weight_D.data_ptr(),
        k_weight=None if k_weight_D is None else k_weight_D.data_ptr(),
        eps=eps,
        rows=rows,
        heads=heads,
        kv_heads=k_NUD.shape[1],
        dim=dim,
        dtype=dtypes[q_NHD.dtype],
    )


def silu_mul(
    library: Library, stream: int | None, gate_NF: Tensor, up_NF: Tensor, *, name: str = "silu_mul",
    dtypes: Mapping[torch.dtype, int] = DTYPE,
) -> Tensor:  # fmt: skip
    out_NF = torch.empty_like(gate_NF, memory_format=torch.contiguous_format)
    if out_NF.numel() == 0:
        return out_NF
    rows, dim = gate_NF.shape
    library.call(
        name,
        stream,
        gate=row_of(gate_NF),
        up=row_of(up_NF),
        out=out_NF.data_ptr(),
        rows=rows,
        dim=dim,
        dtype=dtypes[gate_NF.dtype],
    )
    return out_NF


def linear(
    library: Library, stream: int | None, x_NC: Tensor, weight_OC: Tensor, bias_O: Tensor | None, gated: bool,
    early: bool,
) -> Tensor:  # fmt: skip
    outputs = weight_OC.shape[0] // 2 if gated else weight_OC.shape[0]
    return _product(library, stream, x_NC, weight_OC, bias_O, outputs, gated, early, (None, 0), (None, 0), 0, 0)


def linear_rope(
    library: Library, stream: int | None, x_NC: Tensor, weight_OC: Tensor, bias_O: Tensor | None, cos_ND: Tensor,
    sin_ND: Tensor, heads: int, early: bool,
) -> Tensor:  # fmt: skip
    turn = row_of(cos_ND), row_of(sin_ND), heads, cos_ND.shape[1]
    return _product(library, stream, x_NC, weight_OC, bias_O, weight_OC.shape[0], False, early, *turn)


def _product(
    library: Library, stream: int | None, x_NC: Tensor, weight_OC: Tensor, bias_O: Tensor | None, outputs: int,
    gated: bool, early: bool, cos: tuple[int | None, int], sin: tuple[int | None, int], heads: int, dim: int,
) -> Tensor:  # fmt: skip
    (tokens, inputs), rows = x_NC.shape, weight_OC.shape[0]
    out_NO = x_NC.new_empty(tokens, outputs)
    if tokens == 0:
        return out_NO
    library.call(
        "linear",
        stream,
        x=row_of(x_NC),
        weight=weight_OC.data_ptr(),
        bias=None if bias_O is None else bias_O.data_ptr(),
        out=out_NO.data_ptr(),
        tokens=tokens,
        inputs=inputs,
        rows=rows,
        cos=cos,
        sin=sin,
        heads=heads,
        dim=dim,
        gated=int(gated),
        early=int(early),
        dtype=DTYPE[x_NC.dtype],
    )
    return out_NO
