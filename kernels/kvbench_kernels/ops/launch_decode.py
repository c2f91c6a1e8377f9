"""Calls of the decode kernels, and the choice between those for few and for many queries. All is as in `launch`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from kvbench_kernels.ops.library import Library
from kvbench_kernels.ops.pointers import DTYPE, strided

MOST_NARROW = 8  # queries of a KV head that a narrow decode kernel treats at once
# A wide kernel reads keys and values once for up to 64 queries. It is faster from about this many (key, panel of 8
# queries) of a block of the narrow one on. On an H200, with 8 KV heads, both take the same time at 24k tokens for 16
# queries, and at 2k for 128.
WIDE_FROM = 3072
NO_TENSOR = (None, 0, 0, 0)
# The kernels count slots, and the cost of all work, in 32 bits. An item costs a 32nd of its slots, and a little more.
_MOST_SLOTS, _SLOTS_OF_COST, _COST_OF_ITEM = 2**31 - 1024, 32, 16


@contextmanager
def always(wide: bool) -> Iterator[None]:
    """Compute many queries by the wide kernels inside this context, or by the narrow ones; for comparisons."""
    global WIDE_FROM
    before, WIDE_FROM = WIDE_FROM, 0 if wide else 2**62
    try:
        yield
    finally:
        WIDE_FROM = before


def ragged_decode(
    library: Library, stream: int | None, q_BHTD: Tensor, k_RD: Tensor, v_RD: Tensor, start_S1: Tensor,
    length_S: Tensor, segment_N: Tensor, scaling: float, out_BHTD: Tensor, workspace: Tensor, settled: bool = False,
) -> None:  # fmt: skip
    library.call(
        "ragged_decode",
        stream,
        q=strided(q_BHTD),
        out=strided(out_BHTD),
        k_new=NO_TENSOR,
        v_new=NO_TENSOR,
        **arena(k_RD, v_RD, start_S1, length_S, segment_N),
        lse=None,
        workspace=workspace.data_ptr(),
        status=None,
        scaling=scaling,
        **_sizes(q_BHTD, segment_N),
        **_form(library, workspace, q_BHTD, k_RD, start_S1, segment_N, False),
        dtype=DTYPE[q_BHTD.dtype],
        settled=settled,
    )


def ragged_append_decode(
    library: Library, stream: int | None, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, k_RD: Tensor, v_RD: Tensor,
    start_S1: Tensor, length_S: Tensor, segment_N: Tensor, scaling: float, out_BHTD: Tensor, workspace: Tensor,
    status: Tensor, settled: bool = False,
) -> None:  # fmt: skip
    library.call(
        "ragged_append_decode",
        stream,
        q=strided(q_BHTD),
        out=strided(out_BHTD),
        k_new=strided(k_BUTD),
        v_new=strided(v_BUTD),
        **arena(k_RD, v_RD, start_S1, length_S, segment_N),
        lse=None,
        workspace=workspace.data_ptr(),
        status=status.data_ptr(),
        scaling=scaling,
        **_sizes(q_BHTD, segment_N),
        **_form(library, workspace, q_BHTD, k_RD, start_S1, segment_N, True),
        dtype=DTYPE[q_BHTD.dtype],
        settled=settled,
    )


def workspace(library: Library | None, dim: int, device: torch.device) -> Tensor:
    """Return a workspace of zeros for the decode ops at a head dimension; empty if the reference runs.

    It suffices for any number of queries.
    """
    if library is None:
        return torch.empty(0, dtype=torch.uint8, device=device)
    kinds = itertools.product(DTYPE.values(), (0, 1), (1, MOST_NARROW + 1))
    most = max(decode_blocks(library, device.index, dim, *kind)[0] for kind in kinds)
    return torch.zeros(library.size("decode_workspace_bytes", dim, most), dtype=torch.uint8, device=device)


@cache
def decode_blocks(
    library: Library, number: int | None, dim: int, dtype: int, fused: int, queries: int
) -> tuple[int, int]:
    """Return how many blocks fill the device `number`, which is the current one, and their bytes of workspace.

    Args:
        queries: of a KV head: query heads times tokens.

    Raises:
        RuntimeError: CUDA reports an error.
    """
    blocks = library.size("decode_ctas", dim, dtype, fused, queries)
    if blocks < 1:
        raise RuntimeError(f"kvb::ragged_decode: cannot be launched at head dimension {dim}: CUDA error {-blocks}")
    return blocks, library.size("decode_workspace_bytes", dim, blocks)


def _form(
    library: Library, workspace: Tensor, q_BHTD: Tensor, k_RD: Tensor, start_S1: Tensor, segment_N: Tensor, fused: bool
) -> dict[str, int]:  # fmt: skip
    """Return the kernel of a call, narrow or wide, and its number of blocks."""
    batch, heads, tokens, dim = q_BHTD.shape
    lanes = segment_N.numel()
    queries = batch * heads // lanes * tokens
    kind = DTYPE[q_BHTD.dtype], int(fused)
    blocks, bytes_ = decode_blocks(library, q_BHTD.device.index, dim, *kind, min(queries, MOST_NARROW))
    panels = -(-queries // MOST_NARROW)
    keys = k_RD.shape[0] // max(1, start_S1.numel() - 1)  # of a lane: the lengths are on the device
    wide = panels > 1 and lanes * panels * keys >= WIDE_FROM * blocks
    if wide:
        blocks, bytes_ = decode_blocks(library, q_BHTD.device.index, dim, *kind, MOST_NARROW + 1)
    _check_counts(k_RD.shape[0], lanes, panels, queries)
    if workspace.numel() < bytes_:
        raise ValueError(f"workspace: has {workspace.numel()} bytes, {bytes_} are needed; create it with ops.workspace")
    return {"ctas": blocks, "wide": int(wide)}


def _check_counts(slots: int, lanes: int, items: int, queries: int) -> None:
    """Raise ValueError if a kernel would count more than fits into 32 bits; `items` of a lane, at most."""
    if slots >= _MOST_SLOTS or (slots // _SLOTS_OF_COST + _COST_OF_ITEM * lanes) * items >= _MOST_SLOTS:
        raise ValueError(f"k_RD: {slots} slots are too many for {queries} queries of each KV head in one call")


def _sizes(q_BHTD: Tensor, segment_N: Tensor) -> dict[str, int]:
    """Return the sizes of a decode call, `group` being the query heads per KV head."""
    batch, heads, tokens, dim = q_BHTD.shape
    kv_heads = segment_N.numel() // batch
    return {"batch": batch, "kv_heads": kv_heads, "group": heads // kv_heads, "tokens": tokens, "dim": dim}


def arena(k_RD: Tensor, v_RD: Tensor, start_S1: Tensor, length_S: Tensor, segment_N: Tensor) -> dict[str, int]:
    """Return the pointers to an arena."""
    names = ("k", "v", "start", "length", "segment")
    return dict(zip(names, (x.data_ptr() for x in (k_RD, v_RD, start_S1, length_S, segment_N)), strict=True))
