"""The forms in which rows are stored: in the arena, or in buffers of their own.

The latter are rows with a storage part, with or without eviction while decoding, and rows with a look.

Shape suffixes: B rows, H query heads, U KV heads, T tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kvbench.cache.arena_layer import ArenaLayer
from kvbench.cache.base import Entry, NewTokens
from kvbench.cache.encoded import EncodedRows
from kvbench.cache.encoded_evicting import BlockBackend, EncodedEvictingRows
from kvbench.cache.host_work import HostWork
from kvbench.cache.layer_rows import LayerRows
from kvbench.cache.looking import LookRows
from kvbench.methods.looking import Look
from kvbench.methods.storage import Store
from kvbench_kernels.backends import PackedAttention


class Form(NamedTuple):
    """The form of rows outside the arena: a storage part, or a look. Rows of equal forms share buffers.

    Attributes:
        evicts: True if rows with a storage part evict while decoding.
    """

    store: Store | None
    evicts: bool
    look: Look | None = None


class FormRows(NamedTuple):
    """The rows of a call that have the same form: None for rows of the arena."""

    form: Form | None
    rows: tuple[int, ...]
    at: Tensor  # their places in the call


def form_of(entry: Entry) -> Form | None:
    """Return the form of a row; None for a row of the arena."""
    if entry.store is None and entry.look is None:
        return None
    return Form(entry.store, entry.decoding is not None, entry.look)


def own_rows(form: Form, layer: int, num_layers: int, packed: PackedAttention | None) -> LayerRows:
    """Return the buffers of a form in one layer, without rows.

    Args:
        packed: attends to some layouts of encoded tokens.
    """
    if form.look is not None:
        return LookRows(form.look, layer)
    assert form.store is not None
    if form.evicts:
        backend = BlockBackend(form.store)
        return EncodedEvictingRows(backend, ArenaLayer(backend, layer, num_layers, HostWork()))
    return EncodedRows(form.store, packed)


def by_form(rows: Sequence[int], form_of_row: Mapping[int, Form | None], device: torch.device) -> list[FormRows]:
    """Return the rows of a call by their form."""
    places: dict[Form | None, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(form_of_row[row], []).append(place)
    return [
        FormRows(form, tuple(rows[place] for place in of_form), torch.tensor(of_form, device=device))
        for form, of_form in places.items()
    ]


def of_rows(some: Sequence[int], rows: Sequence[int], ids: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Return the ids of some of the rows."""
    by_row = dict(zip(rows, ids, strict=True))
    return [by_row[row] for row in some]


def attend_by_form(
    groups: Sequence[tuple[LayerRows, FormRows]],
    q_BHTD: Tensor,
    k_BUTD: Tensor,
    v_BUTD: Tensor,
    ids_BT: Tensor | None,
    scaling: float,
    out_BHTD: Tensor,
) -> None:
    """Write the attention of rows with buffers of their own to their places in `out_BHTD`.

    Rows that evict get the ids of the new tokens. The host reads these from the device, because in a replay they are
    others than in the recording.
    """
    for layer_rows, (form, rows, at) in groups:
        new = None
        if form is not None and form.evicts and ids_BT is not None:
            new = NewTokens(ids_BT[at].tolist(), ids_BT[at])
        out_BHTD[at] = layer_rows.attend(rows, q_BHTD[at], k_BUTD[at], v_BUTD[at], scaling, new)
