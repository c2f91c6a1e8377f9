"""Comparison of every op with the reference in double precision, on inputs that are meant to break it.

Slots that are not live hold NaN, and so do outputs before the call. Segments are in another order than the lanes, some
belong to no lane, and queries are transposed views. Shape suffixes as in kvbench_kernels.ops.reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench_kernels import ops
from kvbench_kernels.ops import reference

# ‖out - exact‖ / ‖exact‖: half a unit in the last place of the output; computing in float32 adds a tenth of it
BOUND = {torch.bfloat16: 5e-3, torch.float16: 1e-3}
SCORE_BOUND = 1e-4
NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """An op on one kind of input. `run(device, seed)` returns the error; it must be at most `bound` and not NaN."""

    op: str
    title: str
    bound: float
    run: Callable[[torch.device, int], float]


def cases(large: bool) -> Iterator[Case]:
    """Yield all cases; with `large` also those of a real model's size, which are for a GPU."""
    for dtype in (torch.bfloat16, torch.float16):
        for dim in (64, 80, 96, 128, 256):
            yield _decode_case("ragged_decode", dtype, dim, 4, 1, 200)
            yield _decode_case("ragged_append_decode", dtype, dim, 4, 1, 200)
        for group, tokens in ((1, 1), (5, 1), (8, 1), (4, 3), (7, 2), (1, 17)):
            yield _decode_case("ragged_decode", dtype, 64, group, tokens, 150)
            yield _decode_case("ragged_append_decode", dtype, 64, group, tokens, 150)
        name = _name(dtype)
        for tokens in (1, 5):
            yield Case("ragged_append", f"{name} T{tokens}", 0, partial(append, dtype=dtype, tokens=tokens))
        for over, pool, known in (("mean", "max", True), ("max", "avg", False), ("sum", "none", True)):
            title = f"{name} {over} {pool}{' lse' if known else ''}"
            run = partial(window_score, dtype=dtype, group=over, pool=pool, known=known)
            yield Case("window_score", title, SCORE_BOUND, run)
        yield Case("row_lse", name, SCORE_BOUND, partial(row_lse, dtype=dtype))
        yield Case("column_sums", name, SCORE_BOUND, partial(column_sums, dtype=dtype))
        yield Case("ragged_gather", name, 0, partial(gather, dtype=dtype))
        yield Case("ragged_relayout", name, 0, partial(relayout, dtype=dtype))
        for size in (8, 264, 4096, 9000):
            for added in (False, True):
                title = f"{name} C{size}{' added' if added else ''}"
                yield Case(
                    "add_rms_norm", title, BOUND[dtype], partial(add_rms_norm, dtype=dtype, size=size, added=added)
                )
        for dim in (16, 64, 80, 128, 256):
            for normed in (False, True):
                title = f"{name} D{dim}{' normed' if normed else ''}"
                yield Case("rope", title, BOUND[dtype], partial(rope, dtype=dtype, dim=dim, normed=normed))
        for size in (72, 1000):
            yield Case("silu_mul", f"{name} F{size}", BOUND[dtype], partial(silu_mul, dtype=dtype, size=size))
        for tokens, inputs, outputs, how in (
            (1, 64, 96, ""), (2, 72, 40, "gated early"), (7, 8, 2, "gated"), (8, 1032, 33, "bias"),
            (9, 4096, 50, "bias gated early"), (16, 1992, 1, "early"), (16, 512, 130, "gated"),
        ):  # fmt: skip
            run = partial(linear, dtype=dtype, tokens=tokens, inputs=inputs, outputs=outputs, how=how)
            title = f"{name} N{tokens} C{inputs} O{outputs} {how}".rstrip()
            yield Case("linear", title, BOUND[dtype], run)
        for dim, queries, tokens in ((64, 3, 1), (80, 1, 5), (128, 8, 1), (256, 2, 40)):
            run = partial(decode_weights, dtype=dtype, dim=dim, group=queries, tokens=tokens)
            yield Case("decode_weights", f"{name} D{dim} Q{queries} T{tokens}", BOUND[dtype], run)
        for bits, group, dim in ((2, 32, 64), (4, 16, 80), (8, 32, 128), (2, 8, 256), (4, 32, 32)):
            for queries, tokens in ((1, 1), (3, 1), (12, 1), (2, 5)):
                title = f"{name} {bits} bits G{group} D{dim} Q{queries} T{tokens}"
                run = partial(packed, dtype=dtype, bits=bits, size=group, dim=dim, group=queries, tokens=tokens)
                yield Case("packed_decode", title, BOUND[dtype], run)
        for k_bits, v_bits in ((0, 2), (4, 0), (0, 0)):
            run = partial(packed, dtype=dtype, bits=k_bits, v_bits=v_bits, size=32, dim=64, group=4, tokens=1)
            yield Case("packed_decode", f"{name} {k_bits} and {v_bits} bits", BOUND[dtype], run)
        for bits, dim, channels, queries in ((2, 128, 77, 4), (4, 64, 1, 1), (8, 32, 31, 3)):
            run = partial(packed, dtype=dtype, bits=bits, size=32, dim=dim, group=queries, tokens=1, channels=channels)
            yield Case("packed_decode", f"{name} {bits} bits D{dim} C{channels}", BOUND[dtype], run)
    for scope in ("head", "layer"):
        for ties in (False, True):
            yield Case("select", f"{scope}{' ties' if ties else ''}", 0, partial(select, scope=scope, ties=ties))
    if large:
        for group, tokens, longest in ((4, 1, 40_000), (8, 16, 3000)):
            yield _decode_case("ragged_decode", torch.bfloat16, 128, group, tokens, longest)
            yield _decode_case("ragged_append_decode", torch.bfloat16, 128, group, tokens, longest)


@dataclass
class Arena:
    """Buffers of S segments, of which `segment_N` are in the call; on the host, in double precision."""

    k_RD: Tensor
    v_RD: Tensor
    start_S1: Tensor
    length_S: Tensor
    segment_N: Tensor

    def on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Copy the five tensors to a device, in the order of the ops' arguments."""
        k_RD, v_RD = (x.to(device, dtype, copy=True) for x in (self.k_RD, self.v_RD))
        start_S1, length_S, segment_N = (
            x.to(device, copy=True) for x in (self.start_S1, self.length_S, self.segment_N)
        )
        return k_RD, v_RD, start_S1, length_S, segment_N


def arena(g: torch.Generator, lanes: int, dim: int, longest: int, room: int, dtype: torch.dtype) -> Arena:
    """Draw an arena with at least `room` free slots in each segment, and 3 segments that belong to no lane."""
    segments = lanes + 3
    length_S = torch.randint(0, longest + 1, (segments,), generator=g, dtype=torch.int32)
    length_S[0], length_S[1] = longest, 64  # one long segment, and one at the edge of a tile
    capacity_S = length_S + room + torch.randint(0, 9, (segments,), generator=g, dtype=torch.int32)
    start_S1 = torch.cat([capacity_S.new_zeros(1), capacity_S.cumsum(0, dtype=torch.int32)])
    slots = int(start_S1[-1])
    k_RD, v_RD = normal(g, slots, dim, dtype=dtype), normal(g, slots, dim, dtype=dtype)
    for start, length, end in zip(start_S1, length_S, start_S1[1:], strict=False):
        k_RD[start + length : end] = NAN
        v_RD[start + length : end] = NAN
    segment_N = torch.randperm(segments, generator=g)[:lanes].to(torch.int32)
    return Arena(k_RD, v_RD, start_S1, length_S, segment_N)


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
    """Compare `ragged_decode`, or with `fused` `ragged_append_decode` and the tokens it writes."""
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


def window_score(
    device: torch.device, seed: int, dtype: torch.dtype, group: str, pool: str, known: bool, tokens: int = 203
) -> float:
    """Compare `window_score`, with the log-sum-exp given (`known`) or not."""
    g = torch.Generator().manual_seed(seed)
    q_HTD, k_UTD = _prompt(g, tokens, dtype)
    q_HWD, scaling = q_HTD[:, -24:], 1 / math.sqrt(q_HTD.shape[2])
    lse = reference.row_lse(q_HTD, k_UTD, scaling)[:, -24:] if known else None
    lse_32 = None if lse is None else lse.to(device, torch.float32).contiguous()
    out = torch.ops.kvb.window_score(q_HWD.to(device, dtype), k_UTD.to(device, dtype), lse_32, scaling, group, pool, 7)
    return error(out, reference.window_score(q_HWD, k_UTD, lse, scaling, group, pool, 7))


def row_lse(device: torch.device, seed: int, dtype: torch.dtype) -> float:
    """Compare `row_lse`."""
    q_HTD, k_UTD = _prompt(torch.Generator().manual_seed(seed), 203, dtype)
    out = torch.ops.kvb.row_lse(q_HTD.to(device, dtype), k_UTD.to(device, dtype), 0.125)
    return error(out, reference.row_lse(q_HTD, k_UTD, 0.125))


def column_sums(device: torch.device, seed: int, dtype: torch.dtype) -> float:
    """Compare `column_sums`."""
    q_HTD, k_UTD = _prompt(torch.Generator().manual_seed(seed), 203, dtype)
    lse_HT = reference.row_lse(q_HTD, k_UTD, 0.125)
    out = torch.ops.kvb.column_sums(q_HTD.to(device, dtype), k_UTD.to(device, dtype), lse_HT.to(device).float(), 0.125)
    return error(out, reference.column_sums(q_HTD, k_UTD, lse_HT, 0.125))


def select(device: torch.device, seed: int, scope: str, ties: bool) -> float:
    """Compare `select`: the number of tokens and counts that differ from the reference."""
    g = torch.Generator().manual_seed(seed)
    score_UN = torch.rand(5, 611, generator=g)
    if ties:
        score_UN = (score_UN * 4).round() / 4
    total = int(torch.randint(0, score_UN.numel() + 1, (), generator=g))
    keep_UN, count_U = torch.ops.kvb.select(score_UN.to(device), total, 0.2, scope)
    expected_UN, expected_U = reference.select(score_UN, total, 0.2, scope)
    return float((keep_UN.cpu() != expected_UN).sum() + (count_U.cpu() != expected_U).sum())


def gather(device: torch.device, seed: int, dtype: torch.dtype) -> float:
    """Compare `ragged_gather`, from heads in any order, into an arena with free slots."""
    g = torch.Generator().manual_seed(seed)
    k_TUD, v_TUD = (normal(g, 300, 4, 80, dtype=dtype) for _ in range(2))
    keep_ST = torch.rand(6, 300, generator=g) < torch.rand(6, 1, generator=g)
    head_S = torch.randint(0, 4, (6,), generator=g, dtype=torch.int32)
    capacity_S = keep_ST.sum(1, dtype=torch.int32) + torch.randint(0, 9, (6,), generator=g, dtype=torch.int32)
    start_S1 = torch.cat([capacity_S.new_zeros(1), capacity_S.cumsum(0, dtype=torch.int32)])
    expected = _nan(int(start_S1[-1]), 80)
    actual = [x.to(device, dtype) for x in expected]
    k, v = (x.transpose(0, 1) for x in (k_TUD, v_TUD))
    where = [x.to(device) for x in (keep_ST, head_S, start_S1)]
    torch.ops.kvb.ragged_gather(k.to(device, dtype), v.to(device, dtype), *where, *actual)
    reference.ragged_gather(k, v, keep_ST, head_S, start_S1, *expected)
    return float(not all(same(x, y) for x, y in zip(actual, expected, strict=True)))


def relayout(device: torch.device, seed: int, dtype: torch.dtype) -> float:
    """Compare `ragged_relayout` of some segments, in another order, with other capacities."""
    g = torch.Generator().manual_seed(seed)
    drawn = arena(g, 6, 96, 130, 2, dtype)
    source_M = torch.randperm(9, generator=g)[:5].to(torch.int32)
    capacity_M = drawn.length_S[source_M.long()] + torch.randint(0, 40, (5,), generator=g, dtype=torch.int32)
    start_M1 = torch.cat([capacity_M.new_zeros(1), capacity_M.cumsum(0, dtype=torch.int32)])
    expected = _nan(int(start_M1[-1]), 96)
    new = [x.to(device, dtype) for x in expected]
    old = drawn.on(device, dtype)[:4]
    torch.ops.kvb.ragged_relayout(*old, source_M.to(device), start_M1.to(device), *new)
    exact = drawn.on(torch.device("cpu"), torch.float64)[:4]
    reference.ragged_relayout(*exact, source_M, start_M1, *expected)
    return float(not all(same(x, y) for x, y in zip(new, expected, strict=True)))


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


def add_rms_norm(device: torch.device, seed: int, dtype: torch.dtype, size: int, added: bool) -> float:
    """Compare `add_rms_norm`; the residual stream and x are slices of wider rows."""
    g = torch.Generator().manual_seed(seed)
    residual_NC, x_NC = (normal(g, 3, size + 8, dtype=dtype)[:, :size] for _ in range(2))
    weight_C = normal(g, size, dtype=dtype)
    stream = _wider(residual_NC, device, dtype)
    other = _wider(x_NC, device, dtype) if added else None
    out = torch.ops.kvb.add_rms_norm(stream, other, weight_C.to(device, dtype), 1e-5)
    exact = reference.add_rms_norm(residual_NC, x_NC if added else None, weight_C, 1e-5)
    return max(error(out, exact), error(stream, residual_NC))


def rope(device: torch.device, seed: int, dtype: torch.dtype, dim: int, normed: bool) -> float:
    """Compare `rope`; queries and keys are slices of the same rows, as after one product."""
    g = torch.Generator().manual_seed(seed)
    both_NHD = normal(g, 3, 6 + 2 + 1, dim, dtype=dtype)
    cos_ND, sin_ND = (normal(g, 3, dim, dtype=dtype).clamp(-1, 1) for _ in range(2))
    q_weight, k_weight = (normal(g, dim, dtype=dtype) if normed else None for _ in range(2))
    actual = both_NHD.to(device, dtype, copy=True)
    on_device = [None if x is None else x.to(device, dtype) for x in (cos_ND, sin_ND, q_weight, k_weight)]
    torch.ops.kvb.rope(actual[:, :6], actual[:, 6:8], *on_device, 1e-6)
    reference.rope(both_NHD[:, :6], both_NHD[:, 6:8], cos_ND, sin_ND, q_weight, k_weight, 1e-6)
    return error(actual, both_NHD) if same(actual[:, 8:], both_NHD[:, 8:]) else math.inf


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


def silu_mul(device: torch.device, seed: int, dtype: torch.dtype, size: int) -> float:
    """Compare `silu_mul`; gate and up are halves of the same rows, as after one product."""
    g = torch.Generator().manual_seed(seed)
    both_NF = 4 * normal(g, 3, 2 * size, dtype=dtype)
    gate_NF, up_NF = both_NF.to(device, dtype).chunk(2, dim=1)
    return error(torch.ops.kvb.silu_mul(gate_NF, up_NF), reference.silu_mul(*both_NF.chunk(2, dim=1)))


def linear(
    device: torch.device, seed: int, dtype: torch.dtype, tokens: int, inputs: int, outputs: int, how: str
) -> float:
    """Compare `linear`; x is a slice of wider rows. `how` may have the words bias, gated and early."""
    g = torch.Generator().manual_seed(seed)
    x_NC, weight_OC = normal(g, tokens, inputs, dtype=dtype), normal(g, outputs, inputs, dtype=dtype) / 8
    bias_O = normal(g, outputs, dtype=dtype) if "bias" in how else None
    bias = None if bias_O is None else bias_O.to(device, dtype)
    arguments = _wider(x_NC, device, dtype), weight_OC.to(device, dtype), bias, "gated" in how
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # an early product does not wait for the kernel that writes the weight
    out = torch.ops.kvb.linear(*arguments, "early" in how)
    exact = x_NC @ weight_OC.T if bias_O is None else x_NC @ weight_OC.T + bias_O
    if "gated" in how:
        exact = reference.silu_mul(*exact.to(dtype).double().chunk(2, dim=1))
    return error(out, exact)


def error(out: Tensor, exact: Tensor) -> float:
    """Return ‖out - exact‖ / ‖exact‖; NaN if `out` contains NaN."""
    return float((out.cpu().double() - exact).norm() / exact.norm().clamp_min(1e-30))


def same(out: Tensor, exact: Tensor) -> bool:
    """Return True if the tensors are equal; NaN equals NaN."""
    return torch.equal(out.cpu().double().nan_to_num(nan=1e30), exact.double().nan_to_num(nan=1e30))


def normal(g: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    """Draw normal numbers that `dtype` holds exactly, in double precision."""
    return torch.randn(shape, generator=g).to(dtype).double()


def _nan(slots: int, dim: int) -> tuple[Tensor, Tensor]:
    """Return buffers for keys and values, full of NaN."""
    k_RD, v_RD = torch.full((2, slots, dim), NAN, dtype=torch.float64).unbind()
    return k_RD, v_RD


def _wider(x_NC: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Copy a matrix into a slice of wider rows of NaN."""
    wide = torch.full((x_NC.shape[0], x_NC.shape[1] + 16), NAN, dtype=dtype, device=device)
    wide[:, : x_NC.shape[1]] = x_NC.to(device, dtype)
    return wide[:, : x_NC.shape[1]]


def _prompt(g: torch.Generator, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Draw queries and keys of a prompt, as transposed views."""
    q_THD, k_TUD = normal(g, tokens, 6, 64, dtype=dtype), normal(g, tokens, 2, 64, dtype=dtype)
    return q_THD.transpose(0, 1), k_TUD.transpose(0, 1)


def _decode_case(op: str, dtype: torch.dtype, dim: int, group: int, tokens: int, longest: int) -> Case:
    fused = op == "ragged_append_decode"
    run = partial(decode, dtype=dtype, dim=dim, group=group, tokens=tokens, longest=longest, fused=fused)
    return Case(op, f"{_name(dtype)} D{dim} G{group} T{tokens} length {longest}", BOUND[dtype], run)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
