"""`RaggedCache`: every (row, KV head) has its own length, in one flat buffer per layer, appended in place.

Shape suffixes: B rows of the decode batch, H query heads, U KV heads, G = H / U, S segments (row x KV head),
T tokens, D head dimension.

Appending costs O(new tokens). Three things move a layer's buffers: rows that join (once for all that join between two
steps), growth beyond the reserve, and the release of half the rows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kvbench.cache.arena import Arena, Segment, copied, gather, live_slots, merge
from kvbench.cache.base import Counts, Entry, NewTokens, TokensRead, tokens_read
from kvbench.cache.encoded import EncodedRows
from kvbench.cache.encoded_held import BlockBackend, EncodedHeldRows
from kvbench.cache.held import HeldRow, PolicyGroup, begin
from kvbench.cache.host_work import HostWork
from kvbench.cache.looking import LookRows
from kvbench.cache.quota import Counts as QuotaCounts
from kvbench.methods.decoding import STATE_BYTES, DecodePolicy
from kvbench.methods.looking import Look
from kvbench.methods.storage import Store
from kvbench_kernels.backends import Backend, Buffers, Lanes, make_backend


@dataclass(frozen=True)
class _ActiveRows:
    """The rows that step together.

    Attributes:
        plain: indices of the segments of rows without a policy: one per row and KV head.
        lanes: the segments of all rows.
        groups: the rows with a policy.
    """

    rows: tuple[int, ...]
    plain: list[int]
    lanes: Lanes
    groups: list[PolicyGroup]


class _ArenaLayer:
    """The rows of one layer whose tokens are not encoded: one arena, and one for each prompt that joined since."""

    def __init__(self, backend: Backend, layer: int, num_layers: int, host_work: HostWork) -> None:
        self._backend, self._layer, self._num_layers, self._host_work = backend, layer, num_layers, host_work
        self._held: dict[int, HeldRow] = {}  # rows with a policy; those of active groups are out of date
        self._arenas: list[Arena] = []
        self._dead: set[int] = set()  # released rows whose slots are still there
        self._active: _ActiveRows | None = None
        self._room = 0  # tokens that fit into every active segment
        self._appended = 0  # tokens of each active segment that its length on the host does not count yet
        self.moves = 0

    def add(self, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor) -> None:
        if any(entry.row in self._dead for entry in entries):
            self._rebuild()
        held = {e.row: begin(e, self._layer, self._num_layers) for e in entries if e.policy is not None}
        self._held |= held
        entries = [replace(e, reserve=held[e.row].most_reserved(e)) if e.row in held else e for e in entries]
        self._arenas.append(gather(entries, k_UTD, v_UTD, self._backend))

    def fork(self, row: int, copies: Sequence[int]) -> None:
        if any(copy in self._dead for copy in copies):
            self._rebuild()
        self._deactivate()
        if row in self._held:
            self._held |= {copy: replace(self._held[row]) for copy in copies}
        arena = next(arena for arena in self._arenas if any(s.row == row for s in arena.segments))
        self._arenas.append(copied(arena, row, copies, self._backend))

    def attend(
        self,
        rows: tuple[int, ...],
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        scaling: float,
        new: NewTokens | None = None,
    ) -> Tensor:
        tokens, kv_heads = q_BHTD.shape[2], k_BUTD.shape[1]
        active = self._activate(rows, kv_heads)
        if self._room < tokens or any(group.lacks_room(tokens) for group in active.groups):
            self._grow(rows, tokens)
            active = self._activate(rows, kv_heads)
        self._room -= tokens
        self._appended += tokens
        for group in active.groups:
            group.grow(tokens, None if new is None else new.ids)
        buffers = self._arenas[0].buffers
        out_BHTD = self._backend.append_and_attend(
            q_BHTD, k_BUTD, v_BUTD, buffers, active.lanes, scaling, self._lengths
        )
        for group in active.groups:
            if not group.needs_host:
                group.step(q_BHTD, buffers, scaling, new)
        if any(group.needs_host for group in active.groups):
            self._host_work(partial(_step_on_host, active.groups, q_BHTD, buffers, scaling, new))
        if tokens > 1 and active.groups:
            self._shrink()
        return out_BHTD

    def room(self, rows: tuple[int, ...]) -> int:
        """Return how many tokens fit without a move; 0 if other rows took the last step or a prompt joined.

        With policies it is at most one: after it the host looks again whether the next step is work for the device
        alone.
        """
        active = self._active
        if active is None or active.rows != rows or len(self._arenas) != 1:
            return 0
        if active.groups:
            return min(self._room, int(all(group.can_record() for group in active.groups)))
        return self._room

    def advance(self, ids: Sequence[Sequence[int]]) -> None:
        """Count the token of each active row that a recorded step appends."""
        self._room -= 1
        self._appended += 1
        for group in self._groups:
            group.advance(ids)

    @property
    def _groups(self) -> list[PolicyGroup]:
        return [] if self._active is None else self._active.groups

    def counts(self) -> tuple[int, int, list[QuotaCounts]]:
        return self._room, self._appended, [group.quota.counts() for group in self._groups]

    def reset_counts(self, counts: tuple[int, int, list[QuotaCounts]]) -> None:
        self._room, self._appended, of_groups = counts
        for group, of_group in zip(self._groups, of_groups, strict=True):
            group.quota.reset_counts(of_group)

    def release(self, rows: Sequence[int]) -> None:
        """Mark the slots of `rows` as free; lay out the arena again once half of its slots are free."""
        for arena in self._arenas:
            arena.buffers.check()
        for group in self._groups:
            group.check()
        self._deactivate()
        for row in rows:
            self._held.pop(row, None)
        self._dead.update(rows)
        everything = [s for arena in self._arenas for s in arena.segments]
        if 2 * sum(s.capacity for s in everything if s.row not in self._dead) <= sum(s.capacity for s in everything):
            self._rebuild()

    def of(self, row: int) -> list[Segment]:
        """Return the segments of a row, by head."""
        self._count()
        segments = [s for arena in self._arenas for s in arena.segments if s.row == row and row not in self._dead]
        return sorted(segments, key=lambda s: s.head)

    def keys(self, row: int) -> Tensor:
        """Return what the live slots of a row hold as keys."""
        self._count()
        of_row = [(arena.buffers.k_RD, [s for s in arena.segments if s.row == row]) for arena in self._arenas]
        return torch.cat([k_RD[live_slots(segments, k_RD.device)] for k_RD, segments in of_row])

    def peak(self, row: int) -> int:
        """Return the most tokens that a head of a row held after a step."""
        for group in self._groups:
            if row in group.rows:
                return group.peak(row)
        return self._held[row].peak if row in self._held else max(s.length for s in self.of(row))

    def nbytes(self) -> int:
        states = sum(self.state_bytes(row) for row in self._held)
        return sum(arena.nbytes() for arena in self._arenas) + states

    def state_bytes(self, row: int) -> int:
        """Return the bytes that the policy of a row needs in addition to its keys and values."""
        for group in self._groups:
            if row in group.rows:
                return group.nbytes(row)
        return self._held[row].nbytes() if row in self._held else 0

    def has_policy(self, row: int) -> bool:
        """Return True if a row evicts while decoding."""
        return row in self._held or any(row in group.rows for group in self._groups)

    def token_bytes(self) -> int:
        """Return the bytes of one token's key and value in one head."""
        if not self._arenas:
            return 0
        k_RD = self._arenas[0].buffers.k_RD  # has no slots if no row keeps a token
        return 2 * k_RD.shape[1] * k_RD.itemsize

    def settle(self) -> None:
        """Merge the arenas of prompts that joined since the last step into one."""
        if len(self._arenas) > 1:
            self._rebuild()

    def _activate(self, rows: tuple[int, ...], kv_heads: int) -> _ActiveRows:
        """Find the segment of each (row, head) of the batch."""
        self.settle()
        (arena,) = self._arenas
        if self._active is not None and self._active.rows == rows:
            return self._active
        self._deactivate()
        position = {(s.row, s.head): index for index, s in enumerate(arena.segments)}
        segments = [[position[row, head] for head in range(kv_heads)] for row in rows]
        plain = [i for row, of_row in zip(rows, segments, strict=True) if row not in self._held for i in of_row]
        free = (arena.segments[i].capacity - arena.segments[i].length for i in plain)
        self._room = min(free, default=sys.maxsize)
        lanes = Lanes([i for of_row in segments for i in of_row], len(arena.segments), arena.buffers.k_RD.device)
        self._active = _ActiveRows(rows, plain, lanes, self._grouped(rows, segments))
        return self._active

    def _grouped(self, rows: Sequence[int], segments: Sequence[Sequence[int]]) -> list[PolicyGroup]:
        """Return the active rows with policies, those of equal policies together."""
        places: dict[DecodePolicy, list[int]] = {}
        for place, row in enumerate(rows):
            if row in self._held:
                places.setdefault(self._held[row].decoding.policy, []).append(place)
        return [
            PolicyGroup(
                [(rows[place], self._held[rows[place]]) for place in of_policy],
                places=of_policy,
                batch=len(rows),
                segments=[segments[place] for place in of_policy],
                arena=self._arenas[0],
                layer=self._layer,
                backend=self._backend,
            )
            for of_policy in places.values()
        ]

    def _deactivate(self) -> None:
        """Bring all counts up to date, and take the rows with policies out of their groups."""
        self._count()
        for group in self._groups:
            self._held |= group.leave()
        self._active = None

    def _lengths(self) -> list[int]:
        """Return the live slots of every segment."""
        self._count()
        return [segment.length for segment in self._arenas[0].segments]

    def _count(self) -> None:
        """Add the appended tokens to the lengths on the host."""
        if self._active is None:
            return
        segments = self._arenas[0].segments
        for index in self._active.plain:
            segments[index].length += self._appended
        self._appended = 0
        for group in self._active.groups:
            for index, length in zip(group.index, group.quota.lengths_BU.flatten().tolist(), strict=True):
                segments[index].length = length

    def _grow(self, rows: tuple[int, ...], tokens: int) -> None:
        """Make room for the tokens of a step; called when the reserve of a row is used up.

        A plain row gets room for half as many tokens again. A row with a policy gets it for this step alone: the next
        layout takes the slots back.
        """
        self._deactivate()
        needs = []
        for segment in self._arenas[0].segments:
            needs.append((segment, segment.need))
            if segment.row in rows:
                lacks = segment.capacity - segment.length < tokens and segment.row not in self._held
                ahead = max(tokens, 64, segment.length // 2) if lacks else tokens
                segment.need = max(segment.need, segment.length + ahead)
        self._rebuild()
        for segment, need in needs:
            if segment.row in self._held:
                segment.need = need

    def _shrink(self) -> None:
        """Lay out the arena again if a step left more than half of its slots without use."""
        segments = self._arenas[0].segments
        self._count()
        if 2 * sum(max(s.need, s.length) for s in segments) <= sum(s.capacity for s in segments):
            self._rebuild()

    def _rebuild(self) -> None:
        """Lay out the remaining segments again, in one arena."""
        self._deactivate()
        merged = merge(self._arenas, frozenset(self._dead), self._backend)
        self._arenas = [] if merged is None else [merged]
        self._dead.clear()
        self.moves += 1


def _of(some: Sequence[int], rows: Sequence[int], ids: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Return the ids of some of the rows."""
    by_row = dict(zip(rows, ids, strict=True))
    return [by_row[row] for row in some]


def _step_on_host(
    groups: Sequence[PolicyGroup], q_BHTD: Tensor, buffers: Buffers, scaling: float, new: NewTokens | None
) -> None:
    """Let the policies act that need the host in every step."""
    for group in groups:
        if group.needs_host:
            group.step(q_BHTD, buffers, scaling, new)


class _Form(NamedTuple):
    """The form of rows with buffers of their own: a storage part, and whether they evict while decoding; or a look."""

    store: Store | None
    evicts: bool
    look: Look | None = None


class _FormRows(NamedTuple):
    """The rows of a call that have the same form: None for rows of the arena."""

    form: _Form | None
    rows: tuple[int, ...]
    at: Tensor  # their places in the call


class RaggedCache:
    """The cache that saves memory. Rows with a storage part or a look have buffers of their own.

    Their attention needs the host in every step.

    Args:
        backend: computes the attention of the other rows; by default plain torch.
    """

    def __init__(self, num_layers: int, backend: Backend | None = None) -> None:
        chosen = make_backend("torch") if backend is None else backend
        self.kernel, self.prompt, self._packed = chosen.name, chosen.prompt, chosen.packed
        self.host_work = HostWork()
        self._layers = [_ArenaLayer(chosen, layer, num_layers, self.host_work) for layer in range(num_layers)]
        self._encoded: list[dict[_Form, EncodedRows | EncodedHeldRows | LookRows]] = [{} for _ in range(num_layers)]
        self._form_of: dict[int, _Form] = {}
        self._active: tuple[tuple[int, ...], list[_FormRows]] = (), []

    def add(self, layer: int, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor) -> None:
        forms: dict[_Form | None, list[Entry]] = {}
        for entry in entries:
            own = _Form(entry.store, entry.policy is not None, entry.look)
            forms.setdefault(None if own.store is None and own.look is None else own, []).append(entry)
        for form, of_form in forms.items():
            if form is None:
                self._layers[layer].add(of_form, k_UTD, v_UTD)
                continue
            if form not in self._encoded[layer]:
                self._encoded[layer][form] = self._rows_of(form, layer)
            self._encoded[layer][form].add(of_form, k_UTD, v_UTD)
            self._form_of |= dict.fromkeys((entry.row for entry in of_form), form)

    def _rows_of(self, form: _Form, layer: int) -> EncodedRows | EncodedHeldRows | LookRows:
        if form.look is not None:
            return LookRows(form.look, layer)
        assert form.store is not None
        if not form.evicts:
            return EncodedRows(form.store, self._packed)
        backend = BlockBackend(form.store)
        return EncodedHeldRows(backend, _ArenaLayer(backend, layer, len(self._layers), HostWork()))

    def fork(self, layer: int, row: int, copies: Sequence[int]) -> None:
        assert row not in self._form_of, "a fed prompt has neither a storage part nor a look"
        self._layers[layer].fork(row, copies)

    def attend(
        self,
        layer: int,
        rows: Sequence[int],
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        scaling: float,
        new: NewTokens | None = None,
    ) -> Tensor:
        groups = self._by_form(tuple(rows), q_BHTD.device)
        if all(group.form is None for group in groups):
            return self._layers[layer].attend(tuple(rows), q_BHTD, k_BUTD, v_BUTD, scaling, new)
        out_BHTD = torch.empty_like(q_BHTD)
        for _, together, at in (group for group in groups if group.form is None):
            of_arena = None if new is None else NewTokens(_of(together, rows, new.ids), new.ids_BT[at])
            out_BHTD[at] = self._layers[layer].attend(together, q_BHTD[at], k_BUTD[at], v_BUTD[at], scaling, of_arena)
        of_forms = [(self._encoded[layer][group.form], group) for group in groups if group.form is not None]
        ids_BT = None if new is None else new.ids_BT
        self.host_work(partial(_attend_by_form, of_forms, q_BHTD, k_BUTD, v_BUTD, ids_BT, scaling, out_BHTD))
        return out_BHTD

    def _by_form(self, rows: tuple[int, ...], device: torch.device) -> list[_FormRows]:
        """Return the rows of a call by their form. A recorded step finds the tensors of the steps before it."""
        if self._active[0] != rows:
            places: dict[_Form | None, list[int]] = {}
            for place, row in enumerate(rows):
                places.setdefault(self._form_of.get(row), []).append(place)
            groups = [
                _FormRows(form, tuple(rows[place] for place in of_form), torch.tensor(of_form, device=device))
                for form, of_form in places.items()
            ]
            self._active = rows, groups
        return self._active[1]

    def _arena_rows(self, rows: Sequence[int]) -> tuple[int, ...]:
        return tuple(row for row in rows if row not in self._form_of)

    def release(self, rows: Sequence[int]) -> None:
        for layer, encoded in zip(self._layers, self._encoded, strict=True):
            for of_store in encoded.values():
                of_store.release(rows)
            layer.release(rows)
        for row in rows:
            self._form_of.pop(row, None)
        self._active = (), []

    @property
    def moves(self) -> int:
        return sum(layer.moves for layer in self._layers)

    def room(self, rows: Sequence[int]) -> int:
        if self._active[0] != tuple(rows):
            return 0
        in_arena = self._arena_rows(rows)
        return min(layer.room(in_arena) for layer in self._layers) if in_arena else sys.maxsize

    def advance(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        in_arena = self._arena_rows(rows)
        for layer in self._layers if in_arena else ():
            assert layer.room(in_arena) >= 1
            layer.advance(_of(in_arena, rows, ids))

    def counts(self) -> Counts:
        return [layer.counts() for layer in self._layers]

    def reset_counts(self, counts: Counts) -> None:
        for layer, of_layer in zip(self._layers, counts, strict=True):
            layer.reset_counts(of_layer)

    def lengths(self, row: int) -> list[list[int]]:
        if (form := self._form_of.get(row)) is not None:
            return [encoded[form].lengths(row) for encoded in self._encoded]
        return [[s.length for s in layer.of(row)] for layer in self._layers]

    def peak(self, row: int) -> int:
        if (form := self._form_of.get(row)) is not None:
            return max(encoded[form].peak(row) for encoded in self._encoded)
        return max(layer.peak(row) for layer in self._layers)

    def tokens_read(self, row: int) -> TokensRead | None:
        form = self._form_of.get(row)
        if form is None or form.look is None:
            return None
        layers = (encoded[form] for encoded in self._encoded)
        return tokens_read(form.look, [rows.reads(row) for rows in layers if isinstance(rows, LookRows)])

    def used_bytes(self, row: int) -> int:
        if (form := self._form_of.get(row)) is not None:
            return sum(encoded[form].used_bytes(row) for encoded in self._encoded)
        return sum(layer.token_bytes() * sum(s.length for s in layer.of(row)) for layer in self._layers)

    def held_bytes(self, row: int) -> int:
        form = self._form_of.get(row)
        has_policy = self._layers[0].has_policy(row) if form is None else form.evicts
        return self.used_bytes(row) + (STATE_BYTES * sum(map(sum, self.lengths(row))) if has_policy else 0)

    def slack_bytes(self, row: int) -> int:
        self._settle()
        if (form := self._form_of.get(row)) is not None:
            return sum(encoded[form].row_bytes(row) for encoded in self._encoded) - self.used_bytes(row)
        return sum(
            layer.token_bytes() * sum(s.capacity - s.length for s in layer.of(row)) + layer.state_bytes(row)
            for layer in self._layers
        )

    def bytes(self) -> int:
        self._settle()
        plain = sum(layer.nbytes() for layer in self._layers)
        return plain + sum(rows.bytes() for encoded in self._encoded for rows in encoded.values())

    def _settle(self) -> None:
        for layer, encoded in zip(self._layers, self._encoded, strict=True):
            layer.settle()
            for of_store in encoded.values():
                of_store.settle()


def _attend_by_form(
    groups: Sequence[tuple[EncodedRows | EncodedHeldRows | LookRows, _FormRows]],
    q_BHTD: Tensor,
    k_BUTD: Tensor,
    v_BUTD: Tensor,
    ids_BT: Tensor | None,
    scaling: float,
    out_BHTD: Tensor,
) -> None:
    """Write the attention of rows with buffers of their own to their places in `out_BHTD`.

    The host reads the ids of the new tokens from the device: in a replay they are others than in the recording.
    """
    for layer_rows, (_, rows, at) in groups:
        q, k, v = q_BHTD[at], k_BUTD[at], v_BUTD[at]
        if isinstance(layer_rows, EncodedHeldRows):
            new = None if ids_BT is None else NewTokens(ids_BT[at].tolist(), ids_BT[at])
            out_BHTD[at] = layer_rows.attend(rows, q, k, v, scaling, new)
        else:
            out_BHTD[at] = layer_rows.attend(rows, q, k, v, scaling)
