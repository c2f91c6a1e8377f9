"""`RaggedCache`: every (row, KV head) has its own length, in one flat buffer per layer, appended in place.

Shape suffixes: B rows of the decode batch, H query heads, U KV heads, G = H / U, S segments (row x KV head),
T tokens, D head dimension.

Appending costs O(new tokens). Three things move a layer's buffers: rows that join (once for all that join between two
steps), growth beyond the reserve, and the release of half the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.arena import Arena, Segment, gather, merge
from kvbench.cache.base import Counts, Entry
from kvbench.cache.encoded import EncodedRows
from kvbench.cache.rows import SpecialRow, special_row
from kvbench.methods.storage import Store
from kvbench_kernels.backends import Backend, Lanes, make_backend


@dataclass(frozen=True)
class _ActiveRows:
    """The rows that step together, and the indices of their segments in the arena: one per row and KV head."""

    rows: tuple[int, ...]
    segments: list[int]
    lanes: Lanes


class _ArenaLayer:
    """The plain rows of one layer: one arena, and one for each prompt that joined since the last step."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._arenas: list[Arena] = []
        self._dead: set[int] = set()  # released rows whose slots are still there
        self._active: _ActiveRows | None = None
        self._room = 0  # tokens that fit into every active segment
        self._appended = 0  # tokens of each active segment that its length on the host does not count yet
        self.moves = 0

    def add(self, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor) -> None:
        if any(entry.row in self._dead for entry in entries):
            self._rebuild()
        self._arenas.append(gather(entries, k_UTD, v_UTD, self._backend))

    def attend(self, rows: tuple[int, ...], q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        tokens, kv_heads = q_BHTD.shape[2], k_BUTD.shape[1]
        active = self._activate(rows, kv_heads)
        if self._room < tokens:
            self._grow(tokens)
            active = self._activate(rows, kv_heads)
        self.advance(tokens)
        buffers = self._arenas[0].buffers
        return self._backend.append_and_attend(q_BHTD, k_BUTD, v_BUTD, buffers, active.lanes, scaling, self._lengths)

    def room(self, rows: tuple[int, ...]) -> int:
        """Return how many tokens fit without a move; 0 if other rows took the last step or a prompt joined."""
        return self._room if self._is_active(rows) and len(self._arenas) == 1 else 0

    def _is_active(self, rows: tuple[int, ...]) -> bool:
        return self._active is not None and self._active.rows == rows

    def advance(self, tokens: int) -> None:
        """Count tokens that are appended to the active rows."""
        self._room -= tokens
        self._appended += tokens

    def counts(self) -> tuple[int, int]:
        return self._room, self._appended

    def reset_counts(self, counts: tuple[int, int]) -> None:
        self._room, self._appended = counts

    def release(self, rows: Sequence[int]) -> None:
        """Mark the slots of `rows` as free; lay out the arena again once half of its slots are free."""
        for arena in self._arenas:
            arena.buffers.check()
        self._dead.update(rows)
        everything = [s for arena in self._arenas for s in arena.segments]
        if 2 * sum(s.capacity for s in everything if s.row not in self._dead) <= sum(s.capacity for s in everything):
            self._rebuild()

    def of(self, row: int) -> list[Segment]:
        """Return the segments of a row, by head."""
        self._count()
        segments = [s for arena in self._arenas for s in arena.segments if s.row == row and row not in self._dead]
        return sorted(segments, key=lambda s: s.head)

    def nbytes(self) -> int:
        return sum(arena.nbytes() for arena in self._arenas)

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
        self._count()
        position = {(s.row, s.head): index for index, s in enumerate(arena.segments)}
        indices = [position[row, head] for row in rows for head in range(kv_heads)]
        self._room = min(arena.segments[i].capacity - arena.segments[i].length for i in indices)
        lanes = Lanes(indices, len(arena.segments), arena.buffers.k_RD.device)
        self._active = _ActiveRows(rows, indices, lanes)
        return self._active

    def _lengths(self) -> list[int]:
        """Return the live slots of every segment."""
        self._count()
        return [segment.length for segment in self._arenas[0].segments]

    def _count(self) -> None:
        """Add the appended tokens to the lengths on the host."""
        if self._appended:
            assert self._active is not None
            for index in self._active.segments:
                self._arenas[0].segments[index].length += self._appended
            self._appended = 0

    def _grow(self, tokens: int) -> None:
        """Make room for half as many tokens again; called when the reserve is used up."""
        self._count()
        for segment in self._arenas[0].segments:
            segment.need = max(segment.need, segment.length + max(tokens, 64, segment.length // 2))
        self._rebuild()

    def _rebuild(self) -> None:
        """Lay out the remaining segments again, in one arena."""
        self._count()
        merged = merge(self._arenas, frozenset(self._dead), self._backend)
        self._arenas = [] if merged is None else [merged]
        self._dead.clear()
        self._active = None
        self.moves += 1


class RaggedCache:
    """The cache that saves memory. Rows with a storage part or a decode policy keep their own buffers.

    Args:
        backend: computes the attention of plain rows; by default plain torch.
    """

    def __init__(self, num_layers: int, backend: Backend | None = None) -> None:
        chosen = make_backend("torch") if backend is None else backend
        self.kernel, self.prompt = chosen.name, chosen.prompt
        self._layers = [_ArenaLayer(chosen) for _ in range(num_layers)]
        self._special: list[dict[int, SpecialRow]] = [{} for _ in range(num_layers)]
        self._encoded: list[dict[Store, EncodedRows]] = [{} for _ in range(num_layers)]
        self._store_of: dict[int, Store] = {}

    def add(self, layer: int, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor) -> None:
        plain = [e for e in entries if e.store is None and e.policy is None]
        if plain:
            self._layers[layer].add(plain, k_UTD, v_UTD)
        for store in dict.fromkeys(entry.store for entry in entries):
            if store is not None:
                of_store = [entry for entry in entries if entry.store == store]
                self._encoded[layer].setdefault(store, EncodedRows(store)).add(of_store, k_UTD, v_UTD)
                self._store_of |= dict.fromkeys((entry.row for entry in of_store), store)
        for entry in entries:
            if entry.policy is not None:
                self._special[layer][entry.row] = special_row(entry, k_UTD, v_UTD)

    def attend(
        self, layer: int, rows: Sequence[int], q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float
    ) -> Tensor:
        special = self._special[layer]
        groups: dict[Store | None, list[int]] = {}
        for index, row in enumerate(rows):
            if row not in special:
                groups.setdefault(self._store_of.get(row), []).append(index)
        if list(groups) == [None] and len(groups[None]) == len(rows):
            return self._layers[layer].attend(tuple(rows), q_BHTD, k_BUTD, v_BUTD, scaling)
        out_BHTD = torch.empty_like(q_BHTD)
        for store, indices in groups.items():
            layer_rows = self._layers[layer] if store is None else self._encoded[layer][store]
            at = torch.tensor(indices, device=q_BHTD.device)
            together = tuple(rows[index] for index in indices)
            out_BHTD[at] = layer_rows.attend(together, q_BHTD[at], k_BUTD[at], v_BUTD[at], scaling)
        for index, row in enumerate(rows):
            if row in special:
                out_BHTD[index] = special[row].attend(q_BHTD[index], k_BUTD[index], v_BUTD[index], scaling)
        return out_BHTD

    def release(self, rows: Sequence[int]) -> None:
        for layer, special, encoded in zip(self._layers, self._special, self._encoded, strict=True):
            for row in rows:
                special.pop(row, None)
            for of_store in encoded.values():
                of_store.release(rows)
            layer.release(rows)
        for row in rows:
            self._store_of.pop(row, None)

    @property
    def moves(self) -> int:
        return sum(layer.moves for layer in self._layers)

    def room(self, rows: Sequence[int]) -> int:
        if any(row in self._store_of for row in rows):
            return 0
        if any(row in special for special in self._special if special for row in rows):
            return 0
        return min(layer.room(tuple(rows)) for layer in self._layers)

    def advance(self, rows: Sequence[int], tokens: int) -> None:
        for layer in self._layers:
            assert layer.room(tuple(rows)) >= tokens
            layer.advance(tokens)

    def counts(self) -> Counts:
        return [layer.counts() for layer in self._layers]

    def reset_counts(self, counts: Counts) -> None:
        for layer, of_layer in zip(self._layers, counts, strict=True):
            layer.reset_counts(of_layer)

    def lengths(self, row: int) -> list[list[int]]:
        if (store := self._store_of.get(row)) is not None:
            return [encoded[store].lengths(row) for encoded in self._encoded]
        return [
            special[row].lengths() if row in special else [s.length for s in layer.of(row)]
            for layer, special in zip(self._layers, self._special, strict=True)
        ]

    def used_bytes(self, row: int) -> int:
        if (store := self._store_of.get(row)) is not None:
            return sum(encoded[store].used_bytes(row) for encoded in self._encoded)
        return sum(
            special[row].used_bytes() if row in special else layer.token_bytes() * sum(s.length for s in layer.of(row))
            for layer, special in zip(self._layers, self._special, strict=True)
        )

    def slack_bytes(self, row: int) -> int:
        self._settle()
        if (store := self._store_of.get(row)) is not None:
            return sum(encoded[store].row_bytes(row) for encoded in self._encoded) - self.used_bytes(row)
        return sum(
            special[row].bytes() - special[row].used_bytes()
            if row in special
            else layer.token_bytes() * sum(s.capacity - s.length for s in layer.of(row))
            for layer, special in zip(self._layers, self._special, strict=True)
        )

    def bytes(self) -> int:
        self._settle()
        plain = sum(layer.nbytes() for layer in self._layers)
        encoded = sum(rows.bytes() for encoded in self._encoded for rows in encoded.values())
        return plain + encoded + sum(row.bytes() for special in self._special for row in special.values())

    def _settle(self) -> None:
        for layer, encoded in zip(self._layers, self._encoded, strict=True):
            layer.settle()
            for of_store in encoded.values():
                of_store.settle()
