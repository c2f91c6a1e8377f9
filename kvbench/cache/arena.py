"""An arena: the flat key and value buffers of one layer, and the segments that lie in them.

Shape suffixes: U KV heads, S segments (row x KV head), R slots, T tokens, D head dimension.

A segment's capacity is the number of tokens it will hold. Segments of similar size share the capacity of the
largest of them, at most an eighth above the smallest (or 16 slots). They can then be attended to together (a `Slab`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from kvbench.cache.base import Entry
from kvbench_kernels.backends import Backend, Buffers, Slab


@dataclass
class Segment:
    """The tokens of one row in one KV head: slots start .. start + capacity, of which the first `length` are live."""

    row: int
    head: int
    length: int
    need: int  # tokens it will hold: kept and appended ones together
    capacity: int = 0
    start: int = 0


@dataclass
class Arena:
    """Segments in slab order, and the buffers that hold them.

    Args:
        placed: the segments, or a function that returns them once the host may wait for their lengths.
        allocated: tensors whose first slots are the buffers' keys and values, if there is room for more after them.
    """

    placed: list[Segment] | Callable[[], list[Segment]]
    buffers: Buffers
    allocated: tuple[Tensor, Tensor] | None = None

    @property
    def segments(self) -> list[Segment]:
        """The segments. The first use may wait for the device."""
        if callable(self.placed):
            self.placed = self.placed()
        return self.placed

    @cached_property
    def of_row(self) -> dict[int, list[Segment]]:
        """The segments of every row, by head."""
        rows: dict[int, list[Segment]] = {}
        for segment in sorted(self.segments, key=lambda s: s.head):
            rows.setdefault(segment.row, []).append(segment)
        return rows

    def nbytes(self) -> int:
        """Return the bytes of the keys and values, free slots included."""
        return 2 * self.buffers.k_RD.nbytes

    def has_room(self, slots: int) -> bool:
        """Return True if another arena with this many slots can continue this one."""
        return self.allocated is not None and len(self.buffers.k_RD) + slots <= len(self.allocated[0])

    def continues(self, before: Arena | None) -> bool:
        """Return True if this arena has the slots of one before it, and its own after them."""
        return before is not None and self.allocated is not None and self.allocated is before.allocated


def gather(
    entries: Sequence[Entry],
    k_UTD: Tensor,
    v_UTD: Tensor,
    backend: Backend,
    before: Arena | None = None,
    later: int = 0,
) -> Arena:
    """Return an arena of the tokens of a prompt that the entries keep. Each token is written once, to its final slot.

    Without kernels, slots after a segment's length hold copies of the first token: they are masked, but must
    be finite.

    Args:
        before: an arena that the result continues if it was allocated with enough room. The result then has its
            segments too, and replaces it.
        later: slots to allocate in addition, for arenas that continue this one. It has no effect without the
            backend's functions for a CPU.
    """
    device, (heads, tokens, dim) = k_UTD.device, k_UTD.shape
    keep_ST = torch.stack([entry.keep_UT.to(device) for entry in entries]).flatten(0, 1)
    lengths = keep_ST.sum(1, dtype=torch.int32).tolist()
    segments = [
        Segment(entry.row, head, length, length + entry.reserve)
        for entry, of_heads in zip(entries, _chunks(lengths, heads), strict=True)
        for head, length in enumerate(of_heads)
    ]
    index = {(s.row, s.head): i for i, s in enumerate(segments)}
    slabs, slots = lay_out(segments)
    order = [index[s.row, s.head] for s in segments]
    keep_ST = keep_ST.index_select(0, torch.tensor(order, device=device))
    start_S1 = _starts(segments, slots, device)
    if tokens > 0 and backend.host is not None and backend.host.takes(k_UTD, v_UTD):
        head_S = torch.tensor([s.head for s in segments], dtype=torch.int32)
        if before is not None and before.allocated is not None and before.has_room(slots):
            first, allocated = len(before.buffers.k_RD), before.allocated
        else:  # what is never written takes addresses, not memory
            size = slots + later, dim
            before, first, allocated = None, 0, (k_UTD.new_empty(size), k_UTD.new_empty(size))
        k_RD, v_RD = (x_RD[first : first + slots] for x_RD in allocated)
        backend.host.gather(k_UTD, v_UTD, keep_ST, head_S, start_S1, k_RD, v_RD)
        return _continued(before, segments, slabs, first + slots, allocated)
    if tokens == 0:  # rows that a prompt is fed into
        k_RD, v_RD = (x_UTD.new_zeros(slots, dim) for x_UTD in (k_UTD, v_UTD))
        return _arena(segments, slabs, k_RD, v_RD, start_S1, start_S1[:0].long() if backend.needs_bias else None)
    if backend.prompt is not None:
        head_S = torch.tensor([s.head for s in segments], dtype=torch.int32, device=device)
        k_RD, v_RD = backend.prompt.gather(k_UTD, v_UTD, keep_ST, head_S, start_S1, slots)
        return _arena(segments, slabs, k_RD, v_RD, start_S1)
    source_S, token_N = keep_ST.nonzero().unbind(1)
    head_S = torch.tensor([s.head for s in segments], device=device)
    live_N = live_slots(segments, device)
    source_R = torch.zeros(slots, dtype=torch.long, device=device)
    source_R[live_N] = head_S[source_S] * tokens + token_N
    k_RD, v_RD = (x_UTD.reshape(heads * tokens, dim).index_select(0, source_R) for x_UTD in (k_UTD, v_UTD))
    return _arena(segments, slabs, k_RD, v_RD, start_S1, live_N if backend.needs_bias else None)


def _continued(
    before: Arena | None,
    segments: list[Segment],
    slabs: list[Slab],
    end: int,
    allocated: tuple[Tensor, Tensor],
) -> Arena:
    """Return an arena up to slot `end` of tensors, with the segments of the arena before it and new ones after them."""
    slot = 0 if before is None else len(before.buffers.k_RD)
    for segment in segments:
        segment.start += slot
    k_RD, v_RD = (x_RD[:end] for x_RD in allocated)
    arena = _arena(segments, slabs, k_RD, v_RD, _starts(segments, end, k_RD.device))
    arena.allocated = allocated
    if before is None:
        return arena
    old, new, place = before.buffers, arena.buffers, len(before.segments)
    moved = [Slab(s.first + slot, s.capacity, s.begin + place, s.end + place) for s in slabs]
    arena.buffers = Buffers(
        k_RD,
        v_RD,
        torch.cat([old.start_S1[:-1], new.start_S1]),
        torch.cat([old.length_S, new.length_S]),
        max(old.capacity, new.capacity),
        [*old.slabs, *moved],
    )
    arena.placed = [*before.segments, *segments]
    return arena


def merge(arenas: Sequence[Arena], released: frozenset[int], backend: Backend) -> Arena | None:
    """Return one arena of the segments of several arenas, without `released` rows; None if no segment is left."""
    remaining = [[s for s in arena.segments if s.row not in released] for arena in arenas]
    segments = [s for of_arena in remaining for s in of_arena]
    if not segments:
        return None
    like = arenas[0].buffers.k_RD
    device = like.device
    old_starts = [[s.start for s in of_arena] for of_arena in remaining]
    old_slots = (
        [live_slots(of_arena, device) for of_arena in remaining]
        if not like.is_cpu and (len(arenas) > 1 or not backend.prompt)
        else []
    )
    for segment in segments:  # it may have grown into the capacity that it shares with similar ones
        segment.need = max(segment.need, segment.length)
    place = {id(s): index for index, s in enumerate(arenas[0].segments)}
    in_layout = list(segments)
    slabs, slots = lay_out(in_layout)
    start_S1 = _starts(in_layout, slots, device)
    if len(arenas) == 1 and backend.prompt is not None:
        old_buffers = arenas[0].buffers
        source_S = torch.tensor([place[id(s)] for s in in_layout], dtype=torch.int32, device=device)
        k_RD, v_RD = backend.prompt.relayout(
            old_buffers.k_RD,
            old_buffers.v_RD,
            old_buffers.start_S1,
            old_buffers.length_S,
            source_S,
            start_S1,
            slots,
        )
        return _arena(in_layout, slabs, k_RD, v_RD, start_S1)
    if like.is_cpu:
        k_RD, v_RD = like.new_empty(slots, like.shape[1]), like.new_empty(slots, like.shape[1])
        for arena, starts, of_arena in zip(arenas, old_starts, remaining, strict=True):
            _copy_segments(of_arena, starts, arena.buffers.k_RD, k_RD)
            _copy_segments(of_arena, starts, arena.buffers.v_RD, v_RD)
        live_N = live_slots(segments, device) if backend.needs_bias else None
        return _arena(in_layout, slabs, k_RD, v_RD, start_S1, live_N)
    new_slots = live_slots(segments, device).split([len(x) for x in old_slots])
    k_RD, v_RD = like.new_zeros(slots, like.shape[1]), like.new_zeros(slots, like.shape[1])
    for arena, old, new in zip(arenas, old_slots, new_slots, strict=True):
        k_RD.index_copy_(0, new, arena.buffers.k_RD[old])
        v_RD.index_copy_(0, new, arena.buffers.v_RD[old])
    return _arena(in_layout, slabs, k_RD, v_RD, start_S1, torch.cat(new_slots) if backend.needs_bias else None)


def _copy_segments(segments: Sequence[Segment], starts: Sequence[int], old_RD: Tensor, new_RD: Tensor) -> None:
    """Copy the live slots of segments from where they began to where they begin now; set their free slots to zero.

    On a CPU one copy per segment takes half of the time of one by indices, and no memory between the two buffers.
    """
    for segment, old in zip(segments, starts, strict=True):
        new, length = segment.start, segment.length
        new_RD[new : new + length] = old_RD[old : old + length]
        new_RD[new + length : new + segment.capacity] = 0


def copied(arena: Arena, row: int, copies: Sequence[int], backend: Backend) -> Arena:
    """Return an arena of rows that hold what a row of another arena holds."""
    source = [s for s in arena.segments if s.row == row]
    segments = [replace(s, row=copy, need=max(s.need, s.length)) for copy in copies for s in source]
    old = arena.buffers
    slots_N = live_slots(source, old.k_RD.device).repeat(len(copies))
    in_layout = list(segments)
    slabs, slots = lay_out(in_layout)
    live_N = live_slots(segments, old.k_RD.device)
    k_RD, v_RD = (x_RD.new_zeros(slots, x_RD.shape[1]) for x_RD in (old.k_RD, old.v_RD))
    for new_RD, old_RD in ((k_RD, old.k_RD), (v_RD, old.v_RD)):
        new_RD.index_copy_(0, live_N, old_RD[slots_N])
    start_S1 = _starts(in_layout, slots, old.k_RD.device)
    return _arena(in_layout, slabs, k_RD, v_RD, start_S1, live_N if backend.needs_bias else None)


def lay_out(segments: list[Segment]) -> tuple[list[Slab], int]:
    """Sort segments by need, give similar ones a common capacity, and assign slots to each.

    Returns:
        The slabs, and the total number of slots.
    """
    segments.sort(key=lambda s: (-s.need, s.row, s.head))
    slabs, begin, slot = [], 0, 0
    while begin < len(segments):
        capacity = -(-segments[begin].need // 8) * 8  # GPU kernels need a slab's slots aligned
        end = begin
        while end < len(segments) and capacity - segments[end].need <= max(16, segments[end].need // 8):
            end += 1
        for index in range(begin, end):
            segments[index].capacity = capacity
            segments[index].start = slot + (index - begin) * capacity
        slabs.append(Slab(slot, capacity, begin, end))
        slot += (end - begin) * capacity
        begin = end
    return slabs, slot


def live_slots(segments: Sequence[Segment], device: torch.device) -> Tensor:
    """Return the live slots of the segments, one after the other."""
    lengths = torch.tensor([s.length for s in segments], dtype=torch.long, device=device)  # possibly empty
    starts = torch.tensor([s.start for s in segments], dtype=torch.long, device=device)
    first = lengths.cumsum(0) - lengths
    total = sum(s.length for s in segments)
    return torch.arange(total, device=device) + (starts - first).repeat_interleave(lengths, output_size=total)


def _starts(segments: Sequence[Segment], slots: int, device: torch.device) -> Tensor:
    return torch.tensor([*(s.start for s in segments), slots], dtype=torch.int32, device=device)


def _arena(
    segments: list[Segment],
    slabs: list[Slab],
    k_RD: Tensor,
    v_RD: Tensor,
    start_S1: Tensor,
    live_N: Tensor | None = None,
) -> Arena:
    """Return an arena; with a bias if the live slots are given."""
    bias_R = None
    if live_N is not None:
        bias_R = k_RD.new_full((len(k_RD),), -torch.inf)
        bias_R[live_N] = 0
    length_S = torch.tensor([s.length for s in segments], dtype=torch.int32, device=k_RD.device)
    capacity = max(s.capacity for s in segments)
    return Arena(segments, Buffers(k_RD, v_RD, start_S1, length_S, capacity, slabs, bias_R))


def _chunks(values: Sequence[int], size: int) -> list[Sequence[int]]:
    return [values[i : i + size] for i in range(0, len(values), size)]
