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
from kvbench.cache.forms import Form, FormRows, OwnRows, attend_by_form, by_form, form_of, of_rows, own_rows
from kvbench.cache.host_work import HostWork
from kvbench.cache.late_arena import PromptLengths
from kvbench.cache.looking import LookRows
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
        self._layers = [ArenaLayer(chosen, layer, num_layers, *shared) for layer in range(num_layers)]
        self._encoded: list[dict[Form, OwnRows]] = [{} for _ in range(num_layers)]
        self._form_of: list[dict[int, Form]] = [{} for _ in range(num_layers)]
        self._dtype, self._dim = torch.float32, 0  # of keys and values
        self._policy_of: dict[int, Decoding | None] = {}
        self._active: tuple[int, ...] = ()  # the rows of the last call
        self._groups: list[list[FormRows]] = []  # the same by their forms, in the layers that attended to them

    def add(self, layer: int, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor, later: int = 0) -> None:
        self._dtype, self._dim = k_UTD.dtype, k_UTD.shape[-1]
        self._policy_of |= {entry.row: entry.policy for entry in entries}
        forms: dict[Form | None, list[Entry]] = {}
        for entry in entries:
            forms.setdefault(form_of(entry), []).append(entry)
        for form, of_form in forms.items():
            if form is None:
                self._layers[layer].add(of_form, k_UTD, v_UTD, later)
                continue
            if form not in self._encoded[layer]:
                self._encoded[layer][form] = own_rows(form, layer, len(self._layers), self._packed)
            self._encoded[layer][form].add(of_form, k_UTD, v_UTD)
            self._form_of[layer] |= dict.fromkeys((entry.row for entry in of_form), form)

    def fork(self, layer: int, row: int, copies: Sequence[int]) -> None:
        assert row not in self._form_of[layer], "a fed prompt has neither a storage part nor a look"
        self._layers[layer].fork(row, copies)
        self._policy_of |= dict.fromkeys(copies, self._policy_of[row])

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
            return self._layers[layer].attend(tuple(rows), q_BHTD, k_BUTD, v_BUTD, scaling, new)
        out_BHTD = torch.empty_like(q_BHTD)
        for _, together, at in (group for group in groups if group.form is None):
            of_arena = None if new is None else NewTokens(of_rows(together, rows, new.ids), new.ids_BT[at])
            out_BHTD[at] = self._layers[layer].attend(together, q_BHTD[at], k_BUTD[at], v_BUTD[at], scaling, of_arena)
        of_forms = [(self._encoded[layer][group.form], group) for group in groups if group.form is not None]
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
        return tuple(row for row in rows if row not in self._form_of[0])

    def release(self, rows: Sequence[int]) -> None:
        for layer, encoded, form_of_row in zip(self._layers, self._encoded, self._form_of, strict=True):
            for of_store in encoded.values():
                of_store.release(rows)
            layer.release(rows)
            for row in rows:
                form_of_row.pop(row, None)
            for form in set(encoded) - set(form_of_row.values()):  # a budget may choose other forms for every prompt
                del encoded[form]
        for row in rows:
            self._policy_of.pop(row, None)
        self._active = ()

    def compact(self) -> None:
        for layer, encoded in zip(self._layers, self._encoded, strict=True):
            layer.compact()
            for of_store in encoded.values():
                of_store.compact()

    @property
    def moves(self) -> int:
        return sum(layer.moves for layer in self._layers)

    def room(self, rows: Sequence[int]) -> int:
        if self._active != tuple(rows):
            return 0
        in_arena = self._arena_rows(rows)
        return min(layer.room(in_arena) for layer in self._layers) if in_arena else sys.maxsize

    def advance(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        in_arena = self._arena_rows(rows)
        of_arena = of_rows(in_arena, rows, ids)
        for layer in self._layers if in_arena else ():
            assert layer.room(in_arena) >= 1
            layer.advance(of_arena)

    def counts(self) -> Counts:
        return [layer.counts() for layer in self._layers]

    def reset_counts(self, counts: Counts) -> None:
        for layer, of_layer in zip(self._layers, counts, strict=True):
            layer.reset_counts(of_layer)

    def lengths(self, row: int) -> list[list[int]]:
        if own := self._own(row):
            return [layer.lengths(row) for layer in own]
        return [[s.length for s in layer.of(row)] for layer in self._layers]

    def peak(self, row: int) -> int:
        if own := self._own(row):
            return max(layer.peak(row) for layer in own)
        return max(layer.peak(row) for layer in self._layers)

    def tokens_read(self, row: int) -> TokensRead | None:
        form = self._form_of[0].get(row)
        if form is None or form.look is None:
            return None
        return tokens_read([rows.reads(row) for rows in self._own(row) if isinstance(rows, LookRows)])

    def used_bytes(self, row: int) -> int:
        return sum(self.layer_bytes(row))

    def layer_bytes(self, row: int) -> list[int]:
        """Return the bytes of the stored tokens of a row in every layer."""
        if own := self._own(row):
            return [layer.used_bytes(row) for layer in own]
        return [layer.token_bytes() * sum(s.length for s in layer.of(row)) for layer in self._layers]

    def held_bytes(self, row: int) -> int:
        form = self._form_of[0].get(row)
        policy = self._policy_of.get(row)
        tokens = sum(map(sum, self.lengths(row)))
        state = state_bytes(None if form is None else form.store, policy, self._dim, self._dtype)
        return self.used_bytes(row) + tokens * state

    def slack_bytes(self, row: int) -> int:
        self._settle()
        if own := self._own(row):
            return sum(layer.row_bytes(row) for layer in own) - self.used_bytes(row)
        return sum(
            layer.token_bytes() * sum(s.capacity - s.length for s in layer.of(row)) + layer.state_bytes(row)
            for layer in self._layers
        )

    def bytes(self) -> int:
        self._settle()
        plain = sum(layer.nbytes() for layer in self._layers)
        return plain + sum(rows.bytes() for encoded in self._encoded for rows in encoded.values())

    def _own(self, row: int) -> list[OwnRows]:
        """Return the buffers of a row's form in every layer; empty for a row of the arena."""
        if row not in self._form_of[0]:
            return []
        return [encoded[forms[row]] for encoded, forms in zip(self._encoded, self._form_of, strict=True)]

    def _settle(self) -> None:
        for layer, encoded in zip(self._layers, self._encoded, strict=True):
            layer.settle()
            for of_store in encoded.values():
                of_store.settle()
