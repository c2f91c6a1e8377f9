"""Rows that a storage part encodes and of which nothing leaves: all rows of one layer that share the part, at once.

Shape suffixes: B rows of the call, H query heads, U KV heads, G = H / U, L segments of the call (row x KV head),
S segments, T tokens, W the longest segment of the call, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.cache import direct
from kvbench.cache.base import Entry, NewTokens
from kvbench.cache.blocks import BlockSegment, SegmentPool, plain_if_none
from kvbench.cache.heap import trim_heap
from kvbench.cache.layer_rows import LayerRows
from kvbench.methods.storage import Half, Side, Store, tensors
from kvbench_kernels.backends import PackedAttention, PackedHalf, layout_of


@dataclass
class _Part:
    """The segments of rows that joined together, and their keys and values."""

    segments: list[BlockSegment]
    keys: SegmentPool
    values: SegmentPool


@dataclass(frozen=True)
class _ActiveRows:
    """The rows of the last call, and the indices of their segments: one per row and KV head."""

    rows: tuple[int, ...]
    indices: list[int]
    index_L: Tensor
    place_L6: Tensor  # on the host, as `PackedAttention.attend` takes them


class EncodedRows(LayerRows):
    """All rows of one layer that share a storage part.

    Args:
        store: the part.
        packed: attends to some layouts without decoding them first; None for no layout.
    """

    def __init__(self, store: Store, packed: PackedAttention | None = None) -> None:
        self._store, self._packed = store, packed
        self._halves: tuple[Half, Half] = plain_if_none(store.halves)
        self._parts: list[_Part] = []
        self._dead: set[int] = set()
        self._active: _ActiveRows | None = None

    def add(self, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor, later: int = 0) -> None:
        if any(entry.row in self._dead for entry in entries):
            self._rebuild()
        self._store.check(k_UTD.shape[-1])
        device, heads = k_UTD.device, len(k_UTD)
        keep_ST = torch.stack([entry.keep_UT.to(device) for entry in entries]).flatten(0, 1)
        lengths = keep_ST.sum(1).tolist()
        segments = [
            BlockSegment(entry.row, head, n, n, n + entry.reserve)
            for index, entry in enumerate(entries)
            for head, n in enumerate(lengths[index * heads : (index + 1) * heads])
        ]
        from_S = torch.arange(heads, device=device).repeat(len(entries))
        pools = []
        for index, (half, x_UTD) in enumerate(zip(self._halves, (k_UTD, v_UTD), strict=True)):
            side = _stack([entry.side[index] for entry in entries])
            pools.append(SegmentPool(half, segments, x_UTD, side))
            pools[-1].fill(x_UTD, keep_ST, from_S, side.token)
        self._parts.append(_Part(segments, *pools))

    def attend(
        self,
        rows: tuple[int, ...],
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        scaling: float,
        new: NewTokens | None = None,
    ) -> Tensor:
        """Attend to the stored and the new tokens, causally, then append the new ones: [B, H, T, D]."""
        tokens, kv_heads = k_BUTD.shape[2], k_BUTD.shape[1]
        active = self._activate(rows, kv_heads)
        if any(self._parts[0].segments[i].length + tokens > self._parts[0].segments[i].most for i in active.indices):
            self._grow(tokens)
            active = self._activate(rows, kv_heads)
        (part,) = self._parts
        k_LTD, v_LTD = k_BUTD.flatten(0, 1), v_BUTD.flatten(0, 1)
        layouts = [layout_of(half.kind) for half in self._halves]
        group = q_BHTD.shape[1] // kv_heads
        q_LGTD = q_BHTD.unflatten(1, (kv_heads, -1)).flatten(0, 1)
        if self._packed is not None and self._packed.supports(layouts[0], layouts[1], group, tokens, q_BHTD):
            out_BHTD = self._attend_packed(part, active, q_BHTD, k_BUTD, v_BUTD, scaling)
        elif direct.supports(part.keys, part.values):
            out_LGTD = direct.attend(part.keys, part.values, active.indices, q_LGTD, k_LTD, v_LTD, scaling)
            out_BHTD = out_LGTD.unflatten(0, (len(rows), kv_heads)).flatten(1, 2)
        else:
            outs = [
                _attend_decoded(part, active.indices[at], active.index_L[at], q_LGTD[at], k_LTD[at], v_LTD[at], scaling)
                for at in part.keys.chunks(active.indices)
            ]
            out_BHTD = torch.cat(outs).unflatten(0, (len(rows), kv_heads)).flatten(1, 2)
        for pool, x_LTD in ((part.keys, k_LTD), (part.values, v_LTD)):
            pool.append(active.indices, active.index_L, x_LTD)
        for i in active.indices:
            part.segments[i].length += tokens
        return out_BHTD

    def _attend_packed(
        self, part: _Part, active: _ActiveRows, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float
    ) -> Tensor:
        assert self._packed is not None
        counts = [(part.segments[i].length, part.keys.done(i), part.values.done(i)) for i in active.indices]
        halves = []
        for pool in (part.keys, part.values):
            layout = layout_of(pool.half.kind)
            assert layout is not None
            channel_NC = pool.head_S[active.index_L] if layout.some and pool.head_S is not None else None
            halves.append(PackedHalf(layout, tensors(pool.buffers), pool.plain_RD, channel_NC))
        return self._packed.attend(
            q_BHTD, k_BUTD, v_BUTD, halves[0], halves[1], active.place_L6, torch.tensor(counts), scaling
        )

    def release(self, rows: Sequence[int]) -> None:
        """Forget rows; lay out the buffers again once half of their segments are free."""
        self._dead.update(rows)
        rest = [s.row not in self._dead for part in self._parts for s in part.segments]
        if 2 * sum(rest) <= len(rest):
            self._rebuild()

    def compact(self) -> None:
        if self._dead:
            self._rebuild()

    def lengths(self, row: int) -> list[int]:
        return [part.segments[i].length for part, i in self._of(row)]

    def peak(self, row: int) -> int:
        return max(self.lengths(row))  # none are evicted

    def used_bytes(self, row: int) -> int:
        return sum(pool.used_bytes(i) for part, i in self._of(row) for pool in (part.keys, part.values))

    def slack_bytes(self, row: int) -> int:
        allocated = sum(pool.segment_bytes(i) for part, i in self._of(row) for pool in (part.keys, part.values))
        return allocated - self.used_bytes(row)

    def bytes(self) -> int:
        return sum(
            pool.segment_bytes(i)
            for part in self._parts
            for i in range(len(part.segments))
            for pool in (part.keys, part.values)
        )

    def settle(self) -> None:
        if len(self._parts) > 1:
            self._rebuild()

    def _of(self, row: int) -> list[tuple[_Part, int]]:
        """Return the segments of a row, by head."""
        return [(part, i) for part in self._parts for i, s in enumerate(part.segments) if s.row == row]

    def _activate(self, rows: tuple[int, ...], kv_heads: int) -> _ActiveRows:
        self.settle()
        if self._active is None or self._active.rows != rows:
            (part,) = self._parts
            index_of = {(s.row, s.head): i for i, s in enumerate(part.segments)}
            indices = [index_of[row, head] for row in rows for head in range(kv_heads)]
            index_L = torch.tensor(indices, device=part.keys.plain_RD.device)
            places = [(*part.keys.places(i), *part.values.places(i)) for i in indices]
            self._active = _ActiveRows(rows, indices, index_L, torch.tensor(places))
        return self._active

    def _grow(self, tokens: int) -> None:
        """Make room for half as many tokens again; called when the reserve is used up."""
        for segment in self._parts[0].segments:
            segment.most = max(segment.most, segment.length + max(tokens, 64, segment.length // 2))
        self._rebuild()

    def _rebuild(self) -> None:
        """Lay out the remaining segments again, in one part."""
        before = self.bytes() if self._parts and self._parts[0].keys.plain_RD.is_cpu else 0
        remaining = [[i for i, s in enumerate(part.segments) if s.row not in self._dead] for part in self._parts]
        segments = [part.segments[i] for part, rest in zip(self._parts, remaining, strict=True) for i in rest]
        pools = []
        for index, half in enumerate(self._halves if segments else ()):
            old = [(part.keys, part.values)[index] for part in self._parts]
            heads = [pool.head_S[rest] for pool, rest in zip(old, remaining, strict=True) if pool.head_S is not None]
            token_R = old[0].token_R
            side = Side(torch.cat(heads) if heads else None, None if token_R is None else token_R[None])
            pools.append(SegmentPool(half, segments, old[0].plain_RD, side))
            first = 0
            for source, rest in zip(old, remaining, strict=True):
                pools[-1].copy_from(source, rest, first)
                first += len(rest)
        self._parts = [_Part(segments, *pools)] if segments else []
        self._dead.clear()
        self._active = None
        trim_heap(before)


def _stack(sides: Sequence[Side]) -> Side:
    """Return what several rows of a prompt need to know, with the segments in the place of the KV heads."""
    head = [side.head for side in sides if side.head is not None]
    token = [side.token for side in sides if side.token is not None]
    return Side(torch.cat(head) if head else None, torch.cat(token) if token else None)


def _attend_decoded(
    part: _Part,
    indices: Sequence[int],
    index_L: Tensor,
    q_LGTD: Tensor,
    k_LTD: Tensor,
    v_LTD: Tensor,
    scaling: float,
) -> Tensor:
    """Decode the stored tokens of some segments, and attend to them and to the new ones: [L, G, T, D]."""
    lengths = [part.segments[i].length for i in indices]
    width, (group, tokens) = max(lengths), q_LGTD.shape[1:3]
    k_LND, v_LND = (
        torch.cat([pool.read(indices, index_L, width), x_LTD], 1)[:, None]
        for pool, x_LTD in ((part.keys, k_LTD), (part.values, v_LTD))
    )
    mask = None
    if tokens > 1 or min(lengths) < width:
        device = q_LGTD.device
        stored_LW = torch.arange(width, device=device) < torch.tensor(lengths, device=device)[:, None]
        new_TT = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril_()
        parts = (stored_LW[:, None].expand(-1, tokens, -1), new_TT.expand(len(indices), -1, -1))
        mask = torch.cat(parts, 2).repeat(1, group, 1)[:, None]  # rows G-major, like the queries
    q_L1ND = q_LGTD.flatten(1, 2)[:, None]
    out: Tensor = F.scaled_dot_product_attention(q_L1ND, k_LND, v_LND, attn_mask=mask, scale=scaling)
    out_LGTD: Tensor = out[:, 0].unflatten(1, (group, tokens))
    return out_LGTD
