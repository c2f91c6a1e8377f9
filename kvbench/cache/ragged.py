"""`RaggedCache`: every (row, KV head) has its own length, in one flat buffer per layer, appended in place.

Rows with a storage part or a look have buffers of their own (`kvbench.cache.forms`).

Shape suffixes: B rows of the decode batch, H query heads, U KV heads, T tokens, D head dimension.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from kvbench.cache.arena_layer import ArenaLayer
from kvbench.cache.base import Counts, Entry, NewTokens, TokensRead, tokens_read
from kvbench.cache.forms import Form, FormRows, attend_by_form, by_form, form_of, of_rows, own_rows
from kvbench.cache.host_work import HostWork
from kvbench.cache.late_arena import PromptLengths
from kvbench.cache.layer_rows import LayerRows
from kvbench.cache.step_end import StepEnd
from kvbench.methods.decoding import Decoding
from kvbench.methods.fitting import state_bytes
from kvbench_kernels.backends import Backend, make_backend


class RaggedCache:
    """The cache that saves memory. Rows with a storage part or a look have buffers of their own.

    Their attention needs the host in every step.

    Args:
        backend: computes the attention of the other rows; by default plain torch.
    """

    def __init__(self, num_layers: int, backend: Backend | None = None) -> None:
        chosen = make_backend("torch") if backend is None else backend
        self.kernel, self.prompt, self.sums, self._packed = chosen.name, chosen.prompt, chosen.sums, chosen.packed
        self.host_work = HostWork()
        shared = self.host_work, PromptLengths(), StepEnd()
        self._arenas = [ArenaLayer(chosen, layer, num_layers, *shared) for layer in range(num_layers)]
        self._layers: list[dict[Form | None, LayerRows]] = [{None: arena} for arena in self._arenas]  # rows by form
        self._form_of: list[dict[int, Form | None]] = [{} for _ in range(num_layers)]  # of every row; None: the arena
        self._dtype, self._dim = torch.float32, 0  # of keys and values
        self._decoding_of: dict[int, Decoding | None] = {}
        self._active: tuple[int, ...] = ()  # the rows of the last call
        self._groups: list[list[FormRows]] = []  # the same by their forms, in the layers that attended to them

    def add(self, layer: int, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor, later: int = 0) -> None:
        self._dtype, self._dim = k_UTD.dtype, k_UTD.shape[-1]
        self._decoding_of |= {entry.row: entry.decoding for entry in entries}
        forms: dict[Form | None, list[Entry]] = {}
        for entry in entries:
            forms.setdefault(form_of(entry), []).append(entry)
        for form, of_form in forms.items():
            if form is not None and form not in self._layers[layer]:
                self._layers[layer][form] = own_rows(form, layer, len(self._layers), self._packed)
            self._layers[layer][form].add(of_form, k_UTD, v_UTD, later)
            self._form_of[layer] |= dict.fromkeys((entry.row for entry in of_form), form)

    def fork(self, layer: int, row: int, copies: Sequence[int]) -> None:
        assert self._form_of[layer][row] is None, "a fed prompt has neither a storage part nor a look"
        self._arenas[layer].fork(row, copies)
        self._form_of[layer] |= dict.fromkeys(copies)
        self._decoding_of |= dict.fromkeys(copies, self._decoding_of[row])

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
        groups = self._by_form(layer, tuple(rows), q_BHTD.device)
        if all(group.form is None for group in groups):
            return self._arenas[layer].attend(tuple(rows), q_BHTD, k_BUTD, v_BUTD, scaling, new)
        out_BHTD = torch.empty_like(q_BHTD)
        for _, together, at in (group for group in groups if group.form is None):
            of_arena = None if new is None else NewTokens(of_rows(together, rows, new.ids), new.ids_BT[at])
            out_BHTD[at] = self._arenas[layer].attend(together, q_BHTD[at], k_BUTD[at], v_BUTD[at], scaling, of_arena)
        of_forms = [(self._layers[layer][group.form], group) for group in groups if group.form is not None]
        ids_BT = None if new is None else new.ids_BT
        self.host_work(partial(attend_by_form, of_forms, q_BHTD, k_BUTD, v_BUTD, ids_BT, scaling, out_BHTD))
        return out_BHTD

    def _by_form(self, layer: int, rows: tuple[int, ...], device: torch.device) -> list[FormRows]:
        """Return the rows of a call by their form in a layer. A recorded step finds the tensors of the steps before.

        Layers on one device whose rows have the same forms share them.
        """
        if self._active != rows:
            self._active, self._groups = rows, []
        while len(self._groups) <= layer:
            forms = self._form_of[len(self._groups)]
            before = self._groups[-1] if self._groups else []
            same = before and forms == self._form_of[len(self._groups) - 1] and before[0].at.device == device
            self._groups.append(before if same else by_form(rows, forms, device))
        return self._groups[layer]

    def _arena_rows(self, rows: Sequence[int]) -> tuple[int, ...]:
        return tuple(row for row in rows if self._form_of[0][row] is None)

    def release(self, rows: Sequence[int]) -> None:
        for layer, form_of_row in zip(self._layers, self._form_of, strict=True):
            for layer_rows in layer.values():
                layer_rows.release(rows)
            for row in rows:
                form_of_row.pop(row, None)
            for form in set(layer) - {None, *form_of_row.values()}:  # a budget may choose other forms for every prompt
                del layer[form]
        for row in rows:
            self._decoding_of.pop(row, None)
        self._active = ()

    def compact(self) -> None:
        for layer in self._layers:
            for layer_rows in layer.values():
                layer_rows.compact()

    @property
    def moves(self) -> int:
        return sum(arena.moves for arena in self._arenas)

    def room(self, rows: Sequence[int]) -> int:
        if self._active != tuple(rows):
            return 0
        in_arena = self._arena_rows(rows)
        return min(arena.room(in_arena) for arena in self._arenas) if in_arena else sys.maxsize

    def advance(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        in_arena = self._arena_rows(rows)
        of_arena = of_rows(in_arena, rows, ids)
        for arena in self._arenas if in_arena else ():
            assert arena.room(in_arena) >= 1
            arena.advance(of_arena)

    def counts(self) -> Counts:
        return [arena.counts() for arena in self._arenas]

    def reset_counts(self, counts: Counts) -> None:
        for arena, of_layer in zip(self._arenas, counts, strict=True):
            arena.reset_counts(of_layer)

    def lengths(self, row: int) -> list[list[int]]:
        return [layer.lengths(row) for layer in self._of(row)]

    def peak(self, row: int) -> int:
        return max(layer.peak(row) for layer in self._of(row))

    def tokens_read(self, row: int) -> TokensRead | None:
        reads = [of_layer for layer in self._of(row) if (of_layer := layer.reads(row)) is not None]
        return tokens_read(reads) if reads else None

    def used_bytes(self, row: int) -> int:
        return sum(self.layer_bytes(row))

    def layer_bytes(self, row: int) -> list[int]:
        """Return the bytes of the stored tokens of a row in every layer."""
        return [layer.used_bytes(row) for layer in self._of(row)]

    def held_bytes(self, row: int) -> int:
        form, decoding = self._form_of[0][row], self._decoding_of[row]
        tokens = sum(map(sum, self.lengths(row)))
        state = state_bytes(None if form is None else form.store, decoding, self._dim, self._dtype)
        return self.used_bytes(row) + tokens * state

    def slack_bytes(self, row: int) -> int:
        self._settle()
        return sum(layer.slack_bytes(row) for layer in self._of(row))

    def bytes(self) -> int:
        self._settle()
        return sum(layer_rows.bytes() for layer in self._layers for layer_rows in layer.values())

    def _of(self, row: int) -> list[LayerRows]:
        """Return the rows of each layer among which this one is stored."""
        return [layer[form_of_row[row]] for layer, form_of_row in zip(self._layers, self._form_of, strict=True)]

    def _settle(self) -> None:
        for layer in self._layers:
            for layer_rows in layer.values():
                layer_rows.settle()
