"""Calls of the compiled functions: pointers, sizes and strides (in elements) from checked arguments.

csrc/calls.h documents the fields.

Each function takes the library, the stream (None on the host) and the op's arguments. Shape suffixes as in `reference`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kvbench_kernels.ops.launch_decode import arena, ragged_append_decode, ragged_decode  # noqa: F401
from kvbench_kernels.ops.launch_step import add_rms_norm, linear, linear_rope, rope, silu_mul  # noqa: F401
from kvbench_kernels.ops.library import Library
from kvbench_kernels.ops.pointers import DTYPE, rows_of, strided
from kvbench_kernels.ops.weights import launch as decode_weights  # noqa: F401

_GROUP = {"mean": 0, "max": 1, "sum": 2}
_POOL = {"none": 0, "max": 1, "avg": 2}
_SCOPE = {"head": 0, "layer": 1}


def ragged_append(
    library: Library, stream: int | None, k_RD: Tensor, v_RD: Tensor, start_S1: Tensor, length_S: Tensor,
    segment_N: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, status: Tensor,
) -> None:  # fmt: skip
    batch, kv_heads, tokens, dim = k_BUTD.shape
    library.call(
        "ragged_append",
        stream,
        k_new=strided(k_BUTD),
        v_new=strided(v_BUTD),
        **arena(k_RD, v_RD, start_S1, length_S, segment_N),
        status=status.data_ptr(),
        batch=batch,
        kv_heads=kv_heads,
        tokens=tokens,
        dim=dim,
        dtype=DTYPE[k_RD.dtype],
    )


def window_score(
    library: Library, stream: int | None, q_HWD: Tensor, k_UTD: Tensor, lse_HW: Tensor | None, scaling: float,
    group: str, pool: str, kernel_size: int,
) -> Tensor:  # fmt: skip
    (heads, window, dim), (kv_heads, tokens, _) = q_HWD.shape, k_UTD.shape
    score_UN = k_UTD.new_empty(kv_heads, tokens - window, dtype=torch.float32)
    if score_UN.numel() == 0:
        return score_UN
    has_lse = int(lse_HW is not None)
    bytes_ = library.size("window_score_workspace", heads, kv_heads, window, tokens, has_lse, _POOL[pool])
    workspace = k_UTD.new_empty(bytes_, dtype=torch.uint8)
    library.call(
        "window_score",
        stream,
        q=rows_of(q_HWD),
        k=rows_of(k_UTD),
        lse=(None, 0) if lse_HW is None else (lse_HW.data_ptr(), window),
        out=score_UN.data_ptr(),
        workspace=workspace.data_ptr(),
        heads=heads,
        kv_heads=kv_heads,
        window=window,
        tokens=tokens,
        dim=dim,
        kernel_size=kernel_size,
        scaling=scaling,
        group=_GROUP[group],
        pool=_POOL[pool],
        dtype=DTYPE[k_UTD.dtype],
    )
    return score_UN


def row_lse(library: Library, stream: int | None, q_HTD: Tensor, k_UTD: Tensor, scaling: float) -> Tensor:
    heads, tokens, dim = q_HTD.shape
    lse_HT = q_HTD.new_empty(heads, tokens, dtype=torch.float32)
    library.call(
        "row_lse",
        stream,
        q=rows_of(q_HTD),
        k=rows_of(k_UTD),
        lse=lse_HT.data_ptr(),
        heads=heads,
        kv_heads=k_UTD.shape[0],
        tokens=tokens,
        dim=dim,
        scaling=scaling,
        dtype=DTYPE[q_HTD.dtype],
    )
    return lse_HT


def column_sums(
    library: Library, stream: int | None, q_HTD: Tensor, k_UTD: Tensor, lse_HT: Tensor, scaling: float, *,
    name: str = "column_sums", dtypes: Mapping[torch.dtype, int] = DTYPE,
) -> Tensor:  # fmt: skip
    """Call the compiled kernel, or that of the CPU, whose struct is the same."""
    heads, tokens, dim = q_HTD.shape
    sums_HT = q_HTD.new_empty(heads, tokens, dtype=torch.float32)
    library.call(
        name,
        stream,
        q=rows_of(q_HTD),
        k=rows_of(k_UTD),
        lse=(lse_HT.data_ptr(), tokens),
        out=sums_HT.data_ptr(),
        heads=heads,
        kv_heads=k_UTD.shape[0],
        tokens=tokens,
        dim=dim,
        scaling=scaling,
        dtype=dtypes[q_HTD.dtype],
    )
    return sums_HT


def select(
    library: Library, stream: int | None, score_UN: Tensor, total: int, floor: float, scope: str
) -> tuple[Tensor, Tensor]:
    heads, candidates = score_UN.shape
    keep_UN = torch.empty_like(score_UN, dtype=torch.bool)
    count_U = score_UN.new_empty(heads, dtype=torch.int32)
    workspace = score_UN.new_empty(library.size("select_workspace", heads), dtype=torch.uint8)
    library.call(
        "select",
        stream,
        score=score_UN.data_ptr(),
        keep=keep_UN.data_ptr(),
        count=count_U.data_ptr(),
        workspace=workspace.data_ptr(),
        floor=floor,
        heads=heads,
        candidates=candidates,
        total=total,
        scope=_SCOPE[scope],
    )
    return keep_UN, count_U


def ragged_gather(library: Library, stream: int | None, k_UTD: Tensor, *others: Tensor) -> None:
    library.call("ragged_gather", stream, **gather_fields(k_UTD, *others), dtype=DTYPE[k_UTD.dtype])


def gather_fields(
    k_UTD: Tensor, v_UTD: Tensor, keep_ST: Tensor, head_S: Tensor, start_S1: Tensor, k_RD: Tensor, v_RD: Tensor
) -> dict[str, Any]:
    """Return the fields of a RaggedGather but for the dtype."""
    return {
        "k": rows_of(k_UTD),
        "v": rows_of(v_UTD),
        "keep": keep_ST.data_ptr(),
        "head": head_S.data_ptr(),
        "start": start_S1.data_ptr(),
        "k_to": k_RD.data_ptr(),
        "v_to": v_RD.data_ptr(),
        "tokens": k_UTD.shape[1],
        "dim": k_UTD.shape[2],
        "segments": head_S.numel(),
    }


def ragged_relayout(
    library: Library, stream: int | None, k_RD: Tensor, v_RD: Tensor, start_S1: Tensor, length_S: Tensor,
    source_M: Tensor, start_M1: Tensor, k_QD: Tensor, v_QD: Tensor,
) -> None:  # fmt: skip
    library.call(
        "ragged_relayout",
        stream,
        k=k_RD.data_ptr(),
        v=v_RD.data_ptr(),
        start=start_S1.data_ptr(),
        length=length_S.data_ptr(),
        source=source_M.data_ptr(),
        start_to=start_M1.data_ptr(),
        k_to=k_QD.data_ptr(),
        v_to=v_QD.data_ptr(),
        places=source_M.numel(),
        dim=k_RD.shape[1],
        dtype=DTYPE[k_RD.dtype],
    )


def packed_decode(
    library: Library, stream: int | None, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, k_codes: Tensor,
    k_scale: Tensor, k_low: Tensor, k_plain_RD: Tensor, v_codes: Tensor, v_scale: Tensor, v_low: Tensor,
    v_plain_RD: Tensor, k_channel_NC: Tensor | None, place_N6: Tensor, count_N3: Tensor, k_bits: int, v_bits: int,
    most: int, scaling: float, out_BHTD: Tensor,
) -> None:  # fmt: skip
    (batch, heads, tokens, dim), kv_heads = q_BHTD.shape, k_BUTD.shape[1]
    queries = heads // kv_heads * tokens
    bytes_ = library.size("packed_workspace", batch * kv_heads, queries, dim, most)
    workspace = q_BHTD.new_empty(bytes_, dtype=torch.uint8)
    library.call(
        "packed_decode",
        stream,
        q=strided(q_BHTD),
        out=strided(out_BHTD),
        k_new=strided(k_BUTD),
        v_new=strided(v_BUTD),
        keys=_half(k_codes, k_scale, k_low, k_plain_RD, k_bits, k_channel_NC),
        values=_half(v_codes, v_scale, v_low, v_plain_RD, v_bits),
        place=place_N6.data_ptr(),
        count=count_N3.data_ptr(),
        workspace=workspace.data_ptr(),
        scaling=scaling,
        batch=batch,
        kv_heads=kv_heads,
        group=heads // kv_heads,
        tokens=tokens,
        dim=dim,
        most=most,
        dtype=DTYPE[q_BHTD.dtype],
    )


def _half(
    codes: Tensor, scale: Tensor, low: Tensor, plain_RD: Tensor, bits: int, channel_NC: Tensor | None = None
) -> tuple[int | None, ...]:
    """Return the fields of a PackedHalf."""
    group = codes.shape[2] * 8 // bits if bits else 0
    pointers = (x.data_ptr() for x in (codes, scale, low, plain_RD))
    if channel_NC is None:
        return *pointers, None, plain_RD.shape[1], bits, group
    return *pointers, channel_NC.data_ptr(), channel_NC.shape[1], bits, group
