"""`RaggedCache`: every (row, KV head) has its own length, in one flat buffer per layer, appended in place.

Shape suffixes: B rows of the decode batch, H query heads, U KV heads, G = H / U, S segments (row x KV head),
R slots, T tokens, D head dimension.

Memory: a segment's capacity is its kept tokens plus the reserved ones, and neighbours in size share the capacity of
the largest, at most an eighth above the smallest (or 16 slots), so that they can be attended to together.
Appending costs O(new tokens). Only growth beyond the reserve and the release of half the rows move the buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.base import Entry
from kvbench.cache.rows import SpecialRow, special_row
from kvbench_kernels.reference import Slab, ragged_append, ragged_decode


@dataclass
class _Segment:
    row: int
    head: int
    length: int
    need: int  # tokens it will hold: what it kept and what will be appended
    capacity: int = 0
    start: int = 0


def _group_by_capacity(segments: list[_Segment]) -> list[Slab]:
    """Sort segments by need, level neighbours up to a common capacity, give every segment its slots."""
    segments.sort(key=lambda s: (-s.need, s.row, s.head))
    slabs, begin, slot = [], 0, 0
    while begin < len(segments):
        capacity = segments[begin].need
        end = begin
        while end < len(segments) and capacity - segments[end].need <= max(16, segments[end].need // 8):
            end += 1
        for index in range(begin, end):
            segments[index].capacity = capacity
            segments[index].start = slot + (index - begin) * capacity
        slabs.append(Slab(slot, capacity, begin, end))
        slot += (end - begin) * capacity
        begin = end
    return slabs


def _slots(segments: Sequence[_Segment], device: torch.device) -> Tensor:
    """Live slots of the segments, one after the other."""
    return torch.cat([torch.arange(s.start, s.start + s.length, device=device) for s in segments])


class _Layer:
    """The flat buffers of one layer."""

    def __init__(self) -> None:
        self.segments: list[_Segment] = []  # in slab order
        self.slabs: list[Slab] = []
        self.k_RD: Tensor | None = None
        self.v_RD: Tensor | None = None
        self.dead: set[int] = set()  # released rows whose slots are still there
        self._active: tuple[int, ...] | None = None

    def add(self, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor) -> None:
        """Lay out the old segments and the entries' kept tokens in new buffers."""
        new: list[_Segment] = []
        for entry in entries:
            for head, length in enumerate(entry.keep_UT.sum(1).tolist()):
                new.append(_Segment(entry.row, head, length, length + entry.reserve))
        keeps = [(e.keep_UT.to(k_UTD.device)) for e in entries]
        k_new, v_new = ([x_UTD[keep] for keep in keeps] for x_UTD in (k_UTD, v_UTD))
        self._relayout(self._alive(), new, k_new, v_new, k_UTD)

    def attend(self, rows: tuple[int, ...], q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        batch, heads, tokens, dim = q_BHTD.shape
        kv_heads = k_BUTD.shape[1]
        self._activate(rows, kv_heads)
        if any(self.segments[i].length + tokens > self.segments[i].capacity for i in self._mine):
            self._grow(tokens)
            self._activate(rows, kv_heads)
        assert self.k_RD is not None and self.v_RD is not None
        slot_S = self._start_S[self._mine_S] + self._length_S[self._mine_S]
        ragged_append(self.k_RD, self.v_RD, slot_S, k_BUTD.flatten(0, 1), v_BUTD.flatten(0, 1))
        self._length_S[self._mine_S] += tokens
        for index in self._mine:
            self.segments[index].length += tokens
        q_SGTD = q_BHTD.reshape(batch * kv_heads, heads // kv_heads, tokens, dim)[self._query_S]
        lengths = [segment.length for segment in self.segments]
        out_SGTD = ragged_decode(q_SGTD, self.k_RD, self.v_RD, self.slabs, self._length_S, lengths, scaling)
        return out_SGTD[self._mine_S].reshape(batch, heads, tokens, dim)

    def release(self, rows: Sequence[int]) -> None:
        """Free the slots of `rows`, once half of the buffer is free."""
        self.dead.update(rows)
        alive = self._alive()
        if not alive:
            self.__init__()  # type: ignore[misc]
        elif 2 * sum(s.capacity for s in alive) <= sum(s.capacity for s in self.segments):
            self._relayout(alive, [], [], [], self.k_RD)

    def _alive(self) -> list[_Segment]:
        return [s for s in self.segments if s.row not in self.dead]

    def of(self, row: int) -> list[_Segment]:
        return sorted((s for s in self.segments if s.row == row), key=lambda s: s.head)

    def bytes(self) -> int:
        return 0 if self.k_RD is None else 2 * self.k_RD.nbytes

    def row_bytes(self) -> int:
        """Bytes of one token's key and value in one head."""
        return 0 if self.k_RD is None else 2 * self.k_RD.shape[1] * self.k_RD.element_size()

    def _activate(self, rows: tuple[int, ...], kv_heads: int) -> None:
        """Index tensors that map the batch's (row, head) order to slab order and back."""
        if self._active == rows:
            return
        position = {(s.row, s.head): index for index, s in enumerate(self.segments)}
        self._mine = [position[row, head] for row in rows for head in range(kv_heads)]
        query = [0] * len(self.segments)  # segments of inactive rows get any query; their output is not read
        for source, index in enumerate(self._mine):
            query[index] = source
        assert self.k_RD is not None
        self._mine_S = torch.tensor(self._mine, device=self.k_RD.device)
        self._query_S = torch.tensor(query, device=self.k_RD.device)
        self._active = rows

    def _grow(self, tokens: int) -> None:
        """Room for half as many tokens again, once the reserve is used up."""
        alive = self._alive()
        for segment in alive:
            segment.need = max(segment.need, segment.length + max(tokens, 64, segment.length // 2))
        self._relayout(alive, [], [], [], self.k_RD)

    def _relayout(
        self,
        old: list[_Segment],
        new: list[_Segment],
        k_new: Sequence[Tensor],
        v_new: Sequence[Tensor],
        like: Tensor | None,
    ) -> None:
        assert like is not None
        device = like.device
        k_src, v_src = list(k_new), list(v_new)
        if old:
            assert self.k_RD is not None and self.v_RD is not None
            live = _slots(old, device)
            k_src.insert(0, self.k_RD[live])
            v_src.insert(0, self.v_RD[live])
        for segment in old:  # it may have grown into what it was levelled up to
            segment.need = max(segment.need, segment.length)
        in_order = [*old, *new]
        self.segments = list(in_order)
        self.dead.clear()
        self.slabs = _group_by_capacity(self.segments)
        slots = sum(s.capacity for s in self.segments)
        # zeros, not empty: slots behind a segment's length are read and masked, and NaN would survive the mask
        self.k_RD = torch.zeros(slots, like.shape[-1], dtype=like.dtype, device=device)
        self.v_RD = torch.zeros_like(self.k_RD)
        target = _slots(in_order, device)
        self.k_RD.index_copy_(0, target, torch.cat(k_src))
        self.v_RD.index_copy_(0, target, torch.cat(v_src))
        self._start_S = torch.tensor([s.start for s in self.segments], device=device)
        self._length_S = torch.tensor([s.length for s in self.segments], device=device)
        self._active = None


class RaggedCache:
    """The cache that saves memory. Rows with a storage part or a decode policy keep their own buffers."""

    def __init__(self, num_layers: int) -> None:
        self._layers = [_Layer() for _ in range(num_layers)]
        self._special: list[dict[int, SpecialRow]] = [{} for _ in range(num_layers)]

    def add(self, layer: int, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor) -> None:
        plain = [e for e in entries if e.store is None and e.policy is None]
        if plain:
            self._layers[layer].add(plain, k_UTD, v_UTD)
        for entry in entries:
            if entry.store is not None or entry.policy is not None:
                self._special[layer][entry.row] = special_row(entry, k_UTD, v_UTD)

    def attend(
        self, layer: int, rows: Sequence[int], q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float
    ) -> Tensor:
        special = self._special[layer]
        plain = [index for index, row in enumerate(rows) if row not in special]
        if len(plain) == len(rows):
            return self._layers[layer].attend(tuple(rows), q_BHTD, k_BUTD, v_BUTD, scaling)
        out_BHTD = torch.empty_like(q_BHTD)
        if plain:
            at = torch.tensor(plain, device=q_BHTD.device)
            mine = tuple(rows[index] for index in plain)
            out_BHTD[at] = self._layers[layer].attend(mine, q_BHTD[at], k_BUTD[at], v_BUTD[at], scaling)
        for index, row in enumerate(rows):
            if row in special:
                out_BHTD[index] = special[row].attend(q_BHTD[index], k_BUTD[index], v_BUTD[index], scaling)
        return out_BHTD

    def release(self, rows: Sequence[int]) -> None:
        for layer, special in zip(self._layers, self._special, strict=True):
            for row in rows:
                special.pop(row, None)
            layer.release(rows)

    def lengths(self, row: int) -> list[list[int]]:
        return [
            special[row].lengths() if row in special else [s.length for s in layer.of(row)]
            for layer, special in zip(self._layers, self._special, strict=True)
        ]

    def used_bytes(self, row: int) -> int:
        return sum(
            special[row].used_bytes() if row in special else layer.row_bytes() * sum(s.length for s in layer.of(row))
            for layer, special in zip(self._layers, self._special, strict=True)
        )

    def slack_bytes(self, row: int) -> int:
        return sum(
            special[row].bytes() - special[row].used_bytes()
            if row in special
            else layer.row_bytes() * sum(s.capacity - s.length for s in layer.of(row))
            for layer, special in zip(self._layers, self._special, strict=True)
        )

    def bytes(self) -> int:
        plain = sum(layer.bytes() for layer in self._layers)
        return plain + sum(row.bytes() for special in self._special for row in special.values())
