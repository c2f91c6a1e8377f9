"""Calls of the compiled functions: pointers, sizes and strides (in elements) from checked arguments.

Each function takes the library, the stream (None on the host) and the op's arguments. Shape suffixes as in `reference`.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from kvbench_kernels.ops.library import Library
from kvbench_kernels.ops.weights import launch as decode_weights  # noqa: F401

_DTYPE = {torch.bfloat16: 0, torch.float16: 1}
_GROUP = {"mean": 0, "max": 1, "sum": 2}
_POOL = {"none": 0, "max": 1, "avg": 2}
_SCOPE = {"head": 0, "layer": 1}


def ragged_append(
    library: Library, stream: int | None, k_RD: Tensor, v_RD: Tensor, start_S1: Tensor, length_S: Tensor,
    segment_N: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, status: Tensor,
) -> None:  # fmt: skip
    pointers = (x.data_ptr() for x in (k_RD, v_RD, start_S1, length_S, segment_N))
    dtype = _DTYPE[k_RD.dtype]
    library.call(
        "ragged_append",
        *pointers,
        *_strided(k_BUTD),
        *_strided(v_BUTD),
        status.data_ptr(),
        *k_BUTD.shape,
        dtype,
        stream,
    )


def ragged_decode(
    library: Library, stream: int | None, q_BHTD: Tensor, k_RD: Tensor, v_RD: Tensor, start_S1: Tensor,
    length_S: Tensor, segment_N: Tensor, scaling: float, out_BHTD: Tensor, workspace: Tensor,
) -> None:  # fmt: skip
    pointers = (x.data_ptr() for x in (k_RD, v_RD, start_S1, length_S, segment_N))
    blocks = _blocks(library, workspace, q_BHTD, False)
    sizes, lse = _sizes(q_BHTD, segment_N), None
    library.call(
        "ragged_decode",
        *_strided(q_BHTD),
        *pointers,
        scaling,
        *_strided(out_BHTD),
        lse,
        workspace.data_ptr(),
        *sizes,
        blocks,
        _DTYPE[q_BHTD.dtype],
        stream,
    )


def ragged_append_decode(
    library: Library, stream: int | None, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, k_RD: Tensor, v_RD: Tensor,
    start_S1: Tensor, length_S: Tensor, segment_N: Tensor, scaling: float, out_BHTD: Tensor, workspace: Tensor,
    status: Tensor,
) -> None:  # fmt: skip
    pointers = (x.data_ptr() for x in (k_RD, v_RD, start_S1, length_S, segment_N))
    blocks = _blocks(library, workspace, q_BHTD, True)
    sizes, lse = _sizes(q_BHTD, segment_N), None
    library.call(
        "ragged_append_decode",
        *_strided(q_BHTD),
        *_strided(k_BUTD),
        *_strided(v_BUTD),
        *pointers,
        scaling,
        *_strided(out_BHTD),
        lse,
        workspace.data_ptr(),
        status.data_ptr(),
        *sizes,
        blocks,
        _DTYPE[q_BHTD.dtype],
        stream,
    )


def workspace(library: Library | None, dim: int, device: torch.device) -> Tensor:
    """Return a workspace of zeros for the decode ops at a head dimension; empty if the reference runs."""
    if library is None:
        return torch.empty(0, dtype=torch.uint8, device=device)
    most = max(
        decode_blocks(library, device.index, dim, dtype, fused)[0] for dtype in _DTYPE.values() for fused in (0, 1)
    )
    return torch.zeros(library.size("decode_workspace_bytes", dim, most), dtype=torch.uint8, device=device)


@cache
def decode_blocks(library: Library, number: int | None, dim: int, dtype: int, fused: int) -> tuple[int, int]:
    """Return how many blocks fill the device `number`, which is the current one, and their bytes of workspace.

    Raises:
        RuntimeError: CUDA reports an error.
    """
    blocks = library.size("decode_ctas", dim, dtype, fused)
    if blocks < 1:
        raise RuntimeError(f"kvb::ragged_decode: cannot be launched at head dimension {dim}: CUDA error {-blocks}")
    return blocks, library.size("decode_workspace_bytes", dim, blocks)


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
        *_rows(q_HWD),
        *_rows(k_UTD),
        *((None, 0) if lse_HW is None else (lse_HW.data_ptr(), window)),
        heads,
        kv_heads,
        window,
        tokens,
        dim,
        scaling,
        _GROUP[group],
        _POOL[pool],
        kernel_size,
        score_UN.data_ptr(),
        workspace.data_ptr(),
        _DTYPE[k_UTD.dtype],
        stream,
    )
    return score_UN


def row_lse(library: Library, stream: int | None, q_HTD: Tensor, k_UTD: Tensor, scaling: float) -> Tensor:
    heads, tokens, dim = q_HTD.shape
    lse_HT = q_HTD.new_empty(heads, tokens, dtype=torch.float32)
    sizes = (heads, k_UTD.shape[0], tokens, dim)
    pointer, dtype = lse_HT.data_ptr(), _DTYPE[q_HTD.dtype]
    library.call("row_lse", *_rows(q_HTD), *_rows(k_UTD), *sizes, scaling, pointer, dtype, stream)
    return lse_HT


def column_sums(
    library: Library, stream: int | None, q_HTD: Tensor, k_UTD: Tensor, lse_HT: Tensor, scaling: float
) -> Tensor:
    heads, tokens, dim = q_HTD.shape
    sums_HT = q_HTD.new_empty(heads, tokens, dtype=torch.float32)
    lse, sizes = (lse_HT.data_ptr(), tokens), (heads, k_UTD.shape[0], tokens, dim)
    pointer, dtype = sums_HT.data_ptr(), _DTYPE[q_HTD.dtype]
    library.call("column_sums", *_rows(q_HTD), *_rows(k_UTD), *lse, *sizes, scaling, pointer, dtype, stream)
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
        score_UN.data_ptr(),
        heads,
        candidates,
        total,
        floor,
        _SCOPE[scope],
        keep_UN.data_ptr(),
        count_U.data_ptr(),
        workspace.data_ptr(),
        stream,
    )
    return keep_UN, count_U


def ragged_gather(
    library: Library, stream: int | None, k_UTD: Tensor, v_UTD: Tensor, keep_ST: Tensor, head_S: Tensor,
    start_S1: Tensor, k_RD: Tensor, v_RD: Tensor,
) -> None:  # fmt: skip
    library.call(
        "ragged_gather",
        k_UTD.data_ptr(),
        v_UTD.data_ptr(),
        *k_UTD.stride()[:2],
        *v_UTD.stride()[:2],
        *k_UTD.shape[1:],
        keep_ST.data_ptr(),
        head_S.data_ptr(),
        start_S1.data_ptr(),
        head_S.numel(),
        k_RD.data_ptr(),
        v_RD.data_ptr(),
        _DTYPE[k_RD.dtype],
        stream,
    )


def ragged_relayout(
    library: Library, stream: int | None, k_RD: Tensor, v_RD: Tensor, start_S1: Tensor, length_S: Tensor,
    source_M: Tensor, start_M1: Tensor, k_QD: Tensor, v_QD: Tensor,
) -> None:  # fmt: skip
    pointers = (x.data_ptr() for x in (k_RD, v_RD, start_S1, length_S, source_M, start_M1))
    sizes, new = (source_M.numel(), k_RD.shape[1]), (k_QD.data_ptr(), v_QD.data_ptr())
    library.call("ragged_relayout", *pointers, *sizes, *new, _DTYPE[k_RD.dtype], stream)


def add_rms_norm(
    library: Library, stream: int | None, residual_NC: Tensor, x_NC: Tensor | None, weight_C: Tensor, eps: float
) -> Tensor:
    out_NC = torch.empty_like(residual_NC, memory_format=torch.contiguous_format)
    if out_NC.numel() == 0:
        return out_NC
    library.call(
        "add_rms_norm",
        residual_NC.data_ptr(),
        residual_NC.stride(0),
        *((None, 0) if x_NC is None else (x_NC.data_ptr(), x_NC.stride(0))),
        weight_C.data_ptr(),
        eps,
        out_NC.data_ptr(),
        *residual_NC.shape,
        _DTYPE[residual_NC.dtype],
        stream,
    )
    return out_NC


def rope(
    library: Library, stream: int | None, q_NHD: Tensor, k_NUD: Tensor, cos_ND: Tensor, sin_ND: Tensor,
    q_weight_D: Tensor | None, k_weight_D: Tensor | None, eps: float,
) -> None:  # fmt: skip
    rows, heads, dim = q_NHD.shape
    if rows == 0:
        return
    library.call(
        "rope",
        *_rows(q_NHD),
        *_rows(k_NUD),
        *(cos_ND.data_ptr(), cos_ND.stride(0)),
        *(sin_ND.data_ptr(), sin_ND.stride(0)),
        *(None if weight_D is None else weight_D.data_ptr() for weight_D in (q_weight_D, k_weight_D)),
        eps,
        rows,
        heads,
        k_NUD.shape[1],
        dim,
        _DTYPE[q_NHD.dtype],
        stream,
    )


def silu_mul(library: Library, stream: int | None, gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    out_NF = torch.empty_like(gate_NF, memory_format=torch.contiguous_format)
    if out_NF.numel() == 0:
        return out_NF
    gate, up = (gate_NF.data_ptr(), gate_NF.stride(0)), (up_NF.data_ptr(), up_NF.stride(0))
    library.call("silu_mul", *gate, *up, out_NF.data_ptr(), *gate_NF.shape, _DTYPE[gate_NF.dtype], stream)
    return out_NF


def packed_decode(
    library: Library, stream: int | None, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, k_codes: Tensor,
    k_scale: Tensor, k_low: Tensor, k_plain_RD: Tensor, v_codes: Tensor, v_scale: Tensor, v_low: Tensor,
    v_plain_RD: Tensor, place_N6: Tensor, count_N3: Tensor, k_bits: int, v_bits: int, most: int, scaling: float,
    out_BHTD: Tensor,
) -> None:  # fmt: skip
    (batch, heads, tokens, dim), kv_heads = q_BHTD.shape, k_BUTD.shape[1]
    halves = (k_codes, k_scale, k_low, k_plain_RD, v_codes, v_scale, v_low, v_plain_RD)
    queries = heads // kv_heads * tokens
    bytes_ = library.size("packed_workspace", batch * kv_heads, queries, dim, most)
    workspace = q_BHTD.new_empty(bytes_, dtype=torch.uint8)
    groups = (codes.shape[2] * 8 // bits if bits else 0 for codes, bits in ((k_codes, k_bits), (v_codes, v_bits)))
    k_group, v_group = groups
    library.call(
        "packed_decode",
        *_strided(q_BHTD),
        *_strided(k_BUTD),
        *_strided(v_BUTD),
        *(x.data_ptr() for x in (*halves, place_N6, count_N3)),
        *_strided(out_BHTD),
        workspace.data_ptr(),
        scaling,
        batch,
        kv_heads,
        heads // kv_heads,
        tokens,
        dim,
        most,
        k_bits,
        k_group,
        v_bits,
        v_group,
        _DTYPE[q_BHTD.dtype],
        stream,
    )


def _blocks(library: Library, workspace: Tensor, q_BHTD: Tensor, fused: bool) -> int:
    blocks, bytes_ = decode_blocks(library, q_BHTD.device.index, q_BHTD.shape[3], _DTYPE[q_BHTD.dtype], int(fused))
    if workspace.numel() < bytes_:
        raise ValueError(f"workspace: has {workspace.numel()} bytes, {bytes_} are needed; create it with ops.workspace")
    return blocks


def _sizes(q_BHTD: Tensor, segment_N: Tensor) -> tuple[int, int, int, int, int]:
    """Return the numbers of rows, KV heads, query heads per KV head and tokens, and the head dimension."""
    batch, heads, tokens, dim = q_BHTD.shape
    kv_heads = segment_N.numel() // batch
    return batch, kv_heads, heads // kv_heads, tokens, dim


def _strided(x: Tensor) -> tuple[int, int, int, int]:
    """Return the pointer and the three outer strides of a tensor of four dimensions."""
    batch, head, token, _ = x.stride()
    return x.data_ptr(), batch, head, token


def _rows(x: Tensor) -> tuple[int, int, int]:
    """Return the pointer and the two outer strides of a tensor of three dimensions."""
    outer, inner, _ = x.stride()
    return x.data_ptr(), outer, inner
