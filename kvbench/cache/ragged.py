"""`RaggedCache`: every (row, KV head) has its own length, in one flat buffer per layer, appended in place.

Shape suffixes: B rows of the decode batch, H query heads, U KV heads, G = H / U, S segments (row x KV head),
R slots, T tokens, D head dimension.

Appending costs O(new tokens). Three things move a layer's buffers: rows that join (once for all that join between two
steps), growth beyond the reserve, and the release of half the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.cache.arena import Arena, Segment, gather, merge
from kvbench.cache.base import Entry
from kvbench.cache.rows import SpecialRow, special_row
from kvbench_kernels.reference import ragged_append, ragged_decode


class _Layer:
    """The plain rows of one layer: an arena, and those of prompts that joined since the last step."""

    def __init__(self) -> None:
        self._arenas: list[Arena] = []
        self._dead: set[int] = set()  # released rows whose slots are still there
        self._active: tuple[int, ...] | None = None

    def add(self, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor) -> None:
        if any(entry.row in self._dead for entry in entries):
            self._rebuild()
        self._arenas.append(gather(entries, k_UTD, v_UTD))

    def attend(self, rows: tuple[int, ...], q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        batch, heads, tokens, dim = q_BHTD.shape
        kv_heads = k_BUTD.shape[1]
        arena = self._activate(rows, kv_heads)
        if any(arena.segments[i].length + tokens > arena.segments[i].capacity for i in self._mine):
            self._grow(tokens)
            arena = self._activate(rows, kv_heads)
        slot_S = self._start_S[self._mine_S] + self._length_S[self._mine_S]
        ragged_append(arena.k_RD, arena.v_RD, slot_S, k_BUTD.flatten(0, 1), v_BUTD.flatten(0, 1), arena.bias_R)
        self._length_S.index_add_(0, self._mine_S, torch.full_like(self._mine_S, tokens))
        for index in self._mine:
            arena.segments[index].length += tokens
        q_SGTD = q_BHTD.reshape(batch * kv_heads, heads // kv_heads, tokens, dim)[self._query_S]
        lengths = [segment.length for segment in arena.segments]
        out_SGTD = ragged_decode(
            q_SGTD,
            arena.k_RD,
            arena.v_RD,
            arena.slabs,
            self._length_S,
            lengths,
            scaling,
            self._wanted,
            arena.bias_R,
        )
        return out_SGTD[self._mine_S].reshape(batch, heads, tokens, dim)

    def release(self, rows: Sequence[int]) -> None:
        """Free the slots of `rows`, once half of the slots are free."""
        self._dead.update(rows)
        everything = [s for arena in self._arenas for s in arena.segments]
        if 2 * sum(s.capacity for s in everything if s.row not in self._dead) <= sum(s.capacity for s in everything):
            self._rebuild()

    def of(self, row: int) -> list[Segment]:
        """The segments of a row, by head."""
        found = [s for arena in self._arenas for s in arena.segments if s.row == row and row not in self._dead]
        return sorted(found, key=lambda s: s.head)

    def nbytes(self) -> int:
        return sum(arena.nbytes() for arena in self._arenas)

    def token_bytes(self) -> int:
        """Bytes of one token's key and value in one head."""
        return 2 * self._arenas[0].k_RD.shape[1] * self._arenas[0].k_RD.element_size() if self._arenas else 0

    def settle(self) -> None:
        """Bring what joined since the last step into one arena."""
        if len(self._arenas) > 1:
            self._rebuild()

    def _activate(self, rows: tuple[int, ...], kv_heads: int) -> Arena:
        """Index tensors that map the batch's (row, head) order to slab order and back."""
        self.settle()
        (arena,) = self._arenas
        if self._active == rows:
            return arena
        segments, device = arena.segments, arena.k_RD.device
        position = {(s.row, s.head): index for index, s in enumerate(segments)}
        self._mine = [position[row, head] for row in rows for head in range(kv_heads)]
        query = [0] * len(segments)
        for source, index in enumerate(self._mine):
            query[index] = source
        mine = set(self._mine)
        self._wanted = None if len(mine) == len(segments) else [i in mine for i in range(len(segments))]
        self._mine_S = torch.tensor(self._mine, device=device)
        self._query_S = torch.tensor(query, device=device)
        self._start_S = torch.tensor([s.start for s in segments], device=device)
        self._length_S = torch.tensor([s.length for s in segments], device=device)
        self._active = rows
        return arena

    def _grow(self, tokens: int) -> None:
        """Room for half as many tokens again, once the reserve is used up."""
        for segment in self._arenas[0].segments:
            segment.need = max(segment.need, segment.length + max(tokens, 64, segment.length // 2))
        self._rebuild()

    def _rebuild(self) -> None:
        """Living segments only, laid out anew in one arena."""
        merged = merge(self._arenas, frozenset(self._dead))
        self._arenas = [] if merged is None else [merged]
        self._dead.clear()
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
            special[row].used_bytes() if row in special else layer.token_bytes() * sum(s.length for s in layer.of(row))
            for layer, special in zip(self._layers, self._special, strict=True)
        )

    def slack_bytes(self, row: int) -> int:
        self._settle()
        return sum(
            special[row].bytes() - special[row].used_bytes()
            if row in special
            else layer.token_bytes() * sum(s.capacity - s.length for s in layer.of(row))
            for layer, special in zip(self._layers, self._special, strict=True)
        )

    def bytes(self) -> int:
        self._settle()
        plain = sum(layer.nbytes() for layer in self._layers)
        return plain + sum(row.bytes() for special in self._special for row in special.values())

    def _settle(self) -> None:
        for layer in self._layers:
            layer.settle()
