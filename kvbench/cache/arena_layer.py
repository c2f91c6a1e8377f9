"""The rows of one layer whose keys and values lie in an arena: they join, step, grow, evict and leave.

Shape suffixes: B rows of the decode batch, H query heads, U KV heads, T tokens, D head dimension.

Appending costs O(new tokens). The buffers move when rows join (once for all that join between two steps), when a row
outgrows its reserve, when half of the slots are free, and in `compact`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from kvbench.cache.active import ActiveRows, activate
from kvbench.cache.arena import Segment, gather
from kvbench.cache.arenas import Arenas
from kvbench.cache.base import Entry, NewTokens
from kvbench.cache.host_work import HostWork
from kvbench.cache.late_arena import PromptLengths, gather_unread
from kvbench.cache.layer_rows import LayerRows
from kvbench.cache.policy_group import PolicyGroup
from kvbench.cache.policy_row import PolicyRow, begin
from kvbench.cache.quota import Counts as QuotaCounts
from kvbench.cache.step_end import StepEnd
from kvbench_kernels.backends import Backend


class ArenaLayer(LayerRows):
    """The rows of one layer whose tokens are not encoded: one arena, and one for each prompt that joined since."""

    def __init__(
        self,
        backend: Backend,
        layer: int,
        num_layers: int,
        host_work: HostWork,
        lengths: PromptLengths | None = None,
        step_end: StepEnd | None = None,
    ) -> None:
        self._step_end = step_end or StepEnd()
        self._prompt_lengths = lengths or PromptLengths()
        self._backend, self._layer, self._num_layers, self._host_work = backend, layer, num_layers, host_work
        self._policy_rows: dict[int, PolicyRow] = {}  # those of active groups are out of date
        self._arenas = Arenas(backend)
        self._active: ActiveRows | None = None
        self._room = 0  # tokens that fit into every active segment
        self._appended = 0  # tokens of each active segment that its length on the host does not count yet
        self._counted = True  # False if policies may have changed lengths since they were counted

    @property
    def moves(self) -> int:
        """The number of layouts of the rows so far."""
        return self._arenas.moves

    def add(self, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor, later: int = 0) -> None:
        if self._arenas.had_one_of([entry.row for entry in entries]):
            self._rebuild()
        new = {e.row: begin(e, self._layer, self._num_layers) for e in entries if e.decoding is not None}
        self._policy_rows |= new
        entries = [replace(e, reserve=new[e.row].most_reserved(e)) if e.row in new else e for e in entries]
        kernels = self._backend.prompt
        if kernels is None or any(entry.total is None for entry in entries):
            last = self._arenas.last if self._active is None else None
            arena = gather(entries, k_UTD, v_UTD, self._backend, last, later + later // 4)  # capacities are rounded up
            self._arenas.join(arena, last if arena.continues(last) else None)
        else:
            self._arenas.join(gather_unread(entries, k_UTD, v_UTD, kernels, self._prompt_lengths))

    def fork(self, row: int, copies: Sequence[int]) -> None:
        """Give new rows what a row holds, the state of its policy included."""
        if self._arenas.had_one_of(copies):
            self._rebuild()
        self._deactivate()
        if row in self._policy_rows:
            self._policy_rows |= {copy: replace(self._policy_rows[row]) for copy in copies}
        self._arenas.fork(row, copies)

    def attend(
        self,
        rows: tuple[int, ...],
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        scaling: float,
        new: NewTokens | None = None,
    ) -> Tensor:
        self._step_end.finish_layer(self._layer)  # of a step that did not reach the last layer
        tokens, kv_heads = q_BHTD.shape[2], k_BUTD.shape[1]
        was_active = self._active
        active = self._activate(rows, kv_heads)
        settled = active is was_active and not active.groups
        if self._room < tokens or any(group.lacks_room(tokens) for group in active.groups):
            self._grow(rows, tokens)
            active, settled = self._activate(rows, kv_heads), False
        self._room -= tokens
        self._appended += tokens
        self._counted = False
        for group in active.groups:
            group.grow(tokens, None if new is None else new.ids)
        buffers = self._arenas.first.buffers
        out_BHTD = self._backend.append_and_attend(
            q_BHTD, k_BUTD, v_BUTD, buffers, active.lanes, scaling, self._lengths, settled
        )
        for slots in active.steps:
            if slots.can_wait:
                self._step_end(self._layer, slots, q_BHTD, buffers, scaling, new)
            elif not slots.needs_host:
                slots.step(q_BHTD, buffers, scaling, new)
        if any(group.needs_host for group in active.groups):
            self._host_work(partial(active.step_on_host, q_BHTD, buffers, scaling, new))
        self._counted = False  # the backend may have asked for lengths before the policies acted
        if tokens > 1 and active.groups:
            self._shrink()
        return out_BHTD

    def room(self, rows: tuple[int, ...]) -> int:
        """Return how many tokens fit without a move; 0 if other rows took the last step or a prompt joined.

        With policies it is at most one: after it the host looks again whether the next step is work for the device
        alone.
        """
        active = self._active
        if active is None or active.rows != rows or not self._arenas.settled:
            return 0
        if active.groups:
            return min(self._room, int(all(group.can_record() for group in active.groups)))
        return self._room

    def advance(self, ids: Sequence[Sequence[int]]) -> None:
        """Count the token of each active row that a recorded step appends."""
        self._room -= 1
        self._appended += 1
        self._counted = False
        for group in self._groups:
            group.advance(ids)

    @property
    def _groups(self) -> list[PolicyGroup]:
        return [] if self._active is None else self._active.groups

    def counts(self) -> tuple[int, int, list[QuotaCounts]]:
        """Return the counts on the host, for `reset_counts` after a recording that failed."""
        return self._room, self._appended, [group.quota.counts() for group in self._groups]

    def reset_counts(self, counts: tuple[int, int, list[QuotaCounts]]) -> None:
        """Restore the counts on the host."""
        self._room, self._appended, of_groups = counts
        self._counted = False
        for group, of_group in zip(self._groups, of_groups, strict=True):
            group.quota.reset_counts(of_group)

    def release(self, rows: Sequence[int]) -> None:
        """Mark the slots of `rows` as free; lay out the arena again once half of its slots are free."""
        self._arenas.check()
        self._step_end.finish()
        for group in self._groups:
            group.check()
        self._deactivate()
        for row in rows:
            self._policy_rows.pop(row, None)
        self._arenas.release(rows)

    def compact(self) -> None:
        """Take back the slots of all released rows."""
        if self._arenas.has_released:
            self._rebuild()

    def of(self, row: int) -> list[Segment]:
        """Return the segments of a row, by head."""
        self._count()
        return self._arenas.of(row)

    def keys(self, row: int) -> Tensor:
        """Return what the live slots of a row hold as keys."""
        self._count()
        return self._arenas.keys(row)

    def lengths(self, row: int) -> list[int]:
        return [segment.length for segment in self.of(row)]

    def peak(self, row: int) -> int:
        for group in self._groups:
            if row in group.rows:
                return group.peak(row)
        return self._policy_rows[row].peak if row in self._policy_rows else max(s.length for s in self.of(row))

    def used_bytes(self, row: int) -> int:
        return self._arenas.token_bytes() * sum(self.lengths(row))

    def slack_bytes(self, row: int) -> int:
        free = sum(segment.capacity - segment.length for segment in self.of(row))
        return self._arenas.token_bytes() * free + self.state_bytes(row)

    def bytes(self) -> int:
        """Return the bytes that are allocated for all rows, the states of policies included."""
        return self._arenas.nbytes() + sum(self.state_bytes(row) for row in self._policy_rows)

    def state_bytes(self, row: int) -> int:
        """Return the bytes that the policy of a row needs in addition to its keys and values."""
        for group in self._groups:
            if row in group.rows:
                return group.nbytes(row)
        return self._policy_rows[row].nbytes() if row in self._policy_rows else 0

    def settle(self) -> None:
        """Merge the arenas of prompts that joined since the last step into one."""
        if not self._arenas.settled:
            self._rebuild()

    def _activate(self, rows: tuple[int, ...], kv_heads: int) -> ActiveRows:
        """Find the segment of each (row, head) of the batch."""
        self.settle()
        if self._active is not None and self._active.rows == rows:
            return self._active
        self._deactivate()
        arena = self._arenas.first
        self._active = activate(rows, kv_heads, arena, self._policy_rows, self._layer, self._backend)
        self._room = self._active.free(arena.segments)
        return self._active

    def _deactivate(self) -> None:
        """Bring all counts up to date, and take the rows with policies out of their groups."""
        self._count()
        if self._groups:
            self._step_end.forget()
        for group in self._groups:
            self._policy_rows |= group.leave()
        self._active = None

    def _lengths(self) -> list[int]:
        """Return the live slots of every segment."""
        self._count()
        return [segment.length for segment in self._arenas.first.segments]

    def _count(self) -> None:
        """Add the appended tokens to the lengths on the host."""
        self._step_end.finish_layer(self._layer)
        if self._active is None or self._counted:
            return
        self._counted = True
        self._active.count(self._arenas.first.segments, self._appended)
        self._appended = 0

    def _grow(self, rows: tuple[int, ...], tokens: int) -> None:
        """Make room for the tokens of a step; called when the reserve of a row is used up.

        A plain row gets room for half as many tokens again. A row with a policy gets it for this step alone: the next
        layout takes the slots back.
        """
        self._deactivate()
        needs = []
        for segment in self._arenas.first.segments:
            needs.append((segment, segment.need))
            if segment.row in rows:
                lacks = segment.capacity - segment.length < tokens and segment.row not in self._policy_rows
                ahead = max(tokens, 64, segment.length // 2) if lacks else tokens
                segment.need = max(segment.need, segment.length + ahead)
        self._rebuild()
        for segment, need in needs:
            if segment.row in self._policy_rows:
                segment.need = need

    def _shrink(self) -> None:
        """Lay out the arena again if a step left more than half of its slots without use."""
        segments = self._arenas.first.segments
        self._count()
        if 2 * sum(max(s.need, s.length) for s in segments) <= sum(s.capacity for s in segments):
            self._rebuild()

    def _rebuild(self) -> None:
        """Lay out the remaining segments again, in one arena."""
        self._deactivate()
        self._arenas.rebuild()
