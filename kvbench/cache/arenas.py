"""The arenas of one layer: one that all rows lie in, and one for each prompt that joined since the last step.

Shape suffixes: M live slots, R slots, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from kvbench.cache.arena import Arena, Segment, copied, live_slots, merge
from kvbench.cache.heap import trim_heap
from kvbench_kernels.backends import Backend


class Arenas:
    """The arenas of one layer, and the released rows whose slots are still there.

    Attributes:
        moves: layouts of the rows so far.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._arenas: list[Arena] = []
        self._dead: set[int] = set()
        self.moves = 0

    @property
    def first(self) -> Arena:
        """The arena that all rows lie in once they are settled."""
        return self._arenas[0]

    @property
    def settled(self) -> bool:
        """True if no prompt joined since the last layout."""
        return len(self._arenas) <= 1

    @property
    def has_released(self) -> bool:
        """True if slots of released rows are still there."""
        return bool(self._dead)

    def join(self, arena: Arena, instead: Arena | None = None) -> None:
        """Add the arena of a prompt; `instead` of one that it continues."""
        self._arenas = [x for x in self._arenas if x is not instead]
        self._arenas.append(arena)

    @property
    def last(self) -> Arena | None:
        """The arena that was added last."""
        return self._arenas[-1] if self._arenas else None

    def had_one_of(self, rows: Iterable[int]) -> bool:
        """Return True if slots of one of these rows are still there although the row was released."""
        return not self._dead.isdisjoint(rows)

    def fork(self, row: int, copies: Sequence[int]) -> None:
        """Add an arena of rows that hold what a row holds."""
        arena = next(arena for arena in self._arenas if row in arena.of_row)
        self._arenas.append(copied(arena, row, copies, self._backend))

    def check(self) -> None:
        """Wait for the device. Raises RuntimeError if an append had no room, see `Buffers.check`."""
        for arena in self._arenas:
            arena.buffers.check()

    def release(self, rows: Iterable[int]) -> None:
        """Mark the slots of rows as free; lay out the others again once half of the slots are free."""
        self._dead.update(rows)
        everything = [s for arena in self._arenas for s in arena.segments]
        if 2 * sum(s.capacity for s in everything if s.row not in self._dead) <= sum(s.capacity for s in everything):
            self.rebuild()

    def rebuild(self) -> None:
        """Lay out the remaining segments again, in one arena."""
        before = sum(arena.nbytes() for arena in self._arenas if arena.buffers.k_RD.is_cpu)
        merged = merge(self._arenas, frozenset(self._dead), self._backend)
        self._arenas = [] if merged is None else [merged]
        self._dead.clear()
        self.moves += 1
        trim_heap(before)

    def of(self, row: int) -> list[Segment]:
        """Return the segments of a row, by head."""
        if row in self._dead:
            return []
        return next((arena.of_row[row] for arena in self._arenas if row in arena.of_row), [])

    def keys(self, row: int) -> Tensor:
        """Return what the live slots of a row hold as keys: [M, D]."""
        of_row = [(arena.buffers.k_RD, [s for s in arena.segments if s.row == row]) for arena in self._arenas]
        return torch.cat([k_RD[live_slots(segments, k_RD.device)] for k_RD, segments in of_row])

    def nbytes(self) -> int:
        """Return the bytes of all buffers."""
        return sum(arena.nbytes() for arena in self._arenas)

    def token_bytes(self) -> int:
        """Return the bytes of one token's key and value in one head; 0 without an arena."""
        if not self._arenas:
            return 0
        k_RD = self.first.buffers.k_RD  # has no slots if no row keeps a token
        return 2 * k_RD.shape[1] * k_RD.itemsize
