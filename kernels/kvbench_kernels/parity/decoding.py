"""Comparisons of the ops of a decode step: append, attention, weights, and attention to quantised keys and values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kvbench_kernels import ops
from kvbench_kernels.ops import reference
from kvbench_kernels.ops.launch_decode import MOST_NARROW, always
from kvbench_kernels.parity.inputs import NAN, arena, error, normal, same


def decode(
    device: torch.device,
    seed: int,
    dtype: torch.dtype,
    dim: int,
    group: int,
    tokens: int,
    longest: int,
    fused: bool,
    rows: int = 2,
    kv_heads: int = 3,
) -> float:
    """Compare `ragged_decode`, or with `fused` `ragged_append_decode` and the tokens it writes.

    Many queries of a KV head are computed by both kinds of kernels, whatever their number would choose.
    """
    errors = []
    for wide in (False, True) if group * tokens > MOST_NARROW else (False,):
        with always(wide):
            errors.append(_decode(device, seed, dtype, dim, group, tokens, longest, fused, rows, kv_heads))
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _decode(
    device: torch.device, seed: int, dtype: torch.dtype, dim: int, group: int, tokens: int, longest: int, fused: bool,
    rows: int, kv_heads: int,
) -> float:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    drawn = arena(g, rows * kv_heads, dim, longest, tokens if fused else 0, dtype)
    q_BTHD = normal(g, rows, tokens, kv_heads * group, dim, dtype=dtype) * 2
    k_BTUD, v_BTUD = (normal(g, rows, tokens, kv_heads, dim, dtype=dtype) for _ in range(2))
    scaling = 1 / math.sqrt(dim)
    actual, exact = drawn.on(device, dtype), drawn.on(torch.device("cpu"), torch.float64)
    out, expected = torch.full_like(q_BTHD, NAN, dtype=dtype, device=device), torch.empty_like(q_BTHD)
    scratch, status = ops.workspace(dim, device), torch.zeros(1, dtype=torch.int32, device=device)
    q, k, v = (x.to(device, dtype).transpose(1, 2) for x in (q_BTHD, k_BTUD, v_BTUD))
    if fused:
        torch.ops.kvb.ragged_append_decode(q, k, v, *actual, scaling, out.transpose(1, 2), scratch, status)
        reference.ragged_append(*exact, k_BTUD.transpose(1, 2), v_BTUD.transpose(1, 2), status.cpu())
    else:
        torch.ops.kvb.ragged_decode(q, *actual, scaling, out.transpose(1, 2), scratch)
    reference.ragged_decode(q_BTHD.transpose(1, 2), *exact, scaling, expected.transpose(1, 2))
    if fused and not (int(status) == 0 and all(same(x, y) for x, y in zip(actual, exact, strict=True))):
        return math.inf
    return error(out, expected)


def append(device: torch.device, seed: int, dtype: torch.dtype, tokens: int) -> float:
    """Compare `ragged_append`. One segment has no room: it must stay as it is, and the status must name it."""
    g = torch.Generator().manual_seed(seed)
    drawn = arena(g, 6, 80, 70, tokens, dtype)
    full = int(drawn.segment_N[4])
    drawn.length_S[full] = drawn.start_S1[full + 1] - drawn.start_S1[full] - tokens + 1
    k, v = (normal(g, 2, tokens, 3, 80, dtype=dtype).transpose(1, 2) for _ in range(2))
    actual, exact = drawn.on(device, dtype), drawn.on(torch.device("cpu"), torch.float64)
    status, expected = (torch.zeros(1, dtype=torch.int32, device=where) for where in (device, "cpu"))
    torch.ops.kvb.ragged_append(*actual, k.to(device, dtype), v.to(device, dtype), status)
    reference.ragged_append(*exact, k, v, expected)
    return float(not (same(status, expected) and all(same(x, y) for x, y in zip(actual, exact, strict=True))))


def decode_weights(device: torch.device, seed: int, dtype: torch.dtype, dim: int, group: int, tokens: int) -> float:
    """Compare `decode_weights`, with lanes of any lengths in another order than the segments; NaN fills empty slots."""
    g = torch.Generator().manual_seed(seed)
    length_S = torch.tensor([tokens, tokens + 130, tokens + 999]).int()
    start_S1 = torch.tensor([0, 64, 384, 1600]).int()
    segment_N = torch.tensor([2, 0, 1]).int()
    k_RD, q_NGTD = normal(g, 1600, dim, dtype=dtype), normal(g, 3, group, tokens, dim, dtype=dtype)
    exact = reference.decode_weights(q_NGTD, k_RD, start_S1, length_S, segment_N, dim**-0.5, tokens + 1000)
    for start, length, end in zip(start_S1.tolist(), length_S.tolist(), start_S1.tolist()[1:], strict=False):
        k_RD[start + length : end] = math.nan
    places = (x.to(device) for x in (start_S1, length_S, segment_N))
    tensors = (x.to(device, dtype) for x in (q_NGTD, k_RD))
    return error(torch.ops.kvb.decode_weights(*tensors, *places, dim**-0.5, tokens + 1000), exact.double())


def packed(
    device: torch.device,
    seed: int,
    dtype: torch.dtype,
    bits: int,
    size: int,
    dim: int,
    group: int,
    tokens: int,
    v_bits: int | None = None,
    channels: int | None = None,
) -> float:
    """Compare `packed_decode`, with lanes of any lengths, one of them empty, and plain slots in a ring.

    Args:
        channels: channels of encoded keys, which differ from lane to lane; all by default.
    """
    g = torch.Generator().manual_seed(seed)
    v_bits = bits if v_bits is None else v_bits
    rows, kv_heads, lanes = 2, 3, 6
    stored_N = torch.randint(1, 700, (lanes,), generator=g)
    stored_N[1], stored_N[2] = 0, 256
    encoded: list[list[int]] = [[], []]
    place_N6, plain, blocks = torch.zeros(lanes, 6, dtype=torch.int32), [3, 5], [1, 2]
    for lane, stored in enumerate(stored_N.tolist()):
        for half, (of_code, block) in enumerate(((bits, size), (v_bits, 1))):
            count = int(torch.randint(0, stored + 1, (), generator=g)) // block * block if of_code else 0
            slots = stored - count + int(torch.randint(0, 4, (), generator=g))
            place_N6[lane, 3 * half : 3 * half + 3] = torch.tensor([blocks[half], plain[half], slots])
            encoded[half].append(count)
            blocks[half] += count // block
            plain[half] += slots
    count_N3 = torch.stack([stored_N, *map(torch.tensor, encoded)], 1).int()
    halves: list[Tensor] = []
    for half, (of_code, groups) in enumerate(((bits, channels or dim), (v_bits, dim // size if v_bits else 1))):
        codes = torch.randint(0, 256, (blocks[half], groups, max(1, size * of_code // 8)), generator=g).byte()
        scale, low = normal(g, blocks[half], groups, dtype=dtype) / 8, normal(g, blocks[half], groups, dtype=dtype)
        halves += [codes, scale, low, normal(g, plain[half], dim, dtype=dtype)]
    q = normal(g, rows, tokens, kv_heads * group, dim, dtype=dtype).transpose(1, 2)
    k, v = (normal(g, rows, tokens, kv_heads, dim, dtype=dtype).transpose(1, 2) for _ in range(2))
    out, expected = torch.full_like(q, NAN, dtype=dtype, device=device), torch.empty_like(q)
    sizes = bits, v_bits, int(stored_N.max()) + tokens, 1 / math.sqrt(dim)
    actual = [x.to(device) if x.dtype == torch.uint8 else x.to(device, dtype) for x in (q, k, v, *halves)]
    channel_NC = None
    if channels is not None:
        drawn = [torch.randperm(dim, generator=g)[:channels].sort().values for _ in range(lanes)]
        channel_NC = torch.stack(drawn).short()
    on_device = (x if x is None else x.to(device) for x in (channel_NC, place_N6, count_N3))
    torch.ops.kvb.packed_decode(*actual, *on_device, *sizes, out)
    exact: list[Any] = [q, k, v, *halves, channel_NC, place_N6, count_N3, *sizes, expected]
    reference.packed_decode(*exact)
    return error(out, expected)
