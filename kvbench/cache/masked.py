"""`MaskedCache`: everything stays, what a method evicts is masked. The simulation, and the oracle of the ragged cache.

Deliberately naive: one row at a time, full-length keys and values, explicit softmax. It saves no memory; its bytes
are what it holds, its lengths what a ragged cache would hold.

Shape suffixes: B rows, H query heads, U KV heads, G = H / U, T new tokens, N tokens seen, S tokens visible,
D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.base import Entry


@dataclass
class _Row:
    entry: Entry
    k_UND: Tensor
    v_UND: Tensor
    keep_UN: Tensor
    state: list[Any]


class MaskedCache:
    """Same interface as `RaggedCache`."""

    kernel = "torch"
    prompt = None
    moves = 0  # for nothing is recorded

    def __init__(self, num_layers: int) -> None:
        self._layers: list[dict[int, _Row]] = [{} for _ in range(num_layers)]

    def add(self, layer: int, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor) -> None:
        for entry in entries:
            state = []
            if entry.policy is not None:
                assert entry.score_UT is not None
                state = [entry.policy.start(s[m]) for s, m in zip(entry.score_UT, entry.keep_UT, strict=True)]
            self._layers[layer][entry.row] = _Row(entry, k_UTD, v_UTD, entry.keep_UT.clone(), state)

    def attend(
        self, layer: int, rows: Sequence[int], q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float
    ) -> Tensor:
        return torch.stack(
            [
                self._attend_row(self._layers[layer][row], q_BHTD[i], k_BUTD[i], v_BUTD[i], scaling)
                for i, row in enumerate(rows)
            ]
        )

    def _attend_row(self, row: _Row, q_HTD: Tensor, k_UTD: Tensor, v_UTD: Tensor, scaling: float) -> Tensor:
        tokens = q_HTD.shape[1]
        k_UND, v_UND = self._as_stored(row, k_UTD, v_UTD)
        row.k_UND, row.v_UND = torch.cat([row.k_UND, k_UTD], 1), torch.cat([row.v_UND, v_UTD], 1)
        row.keep_UN = torch.cat([row.keep_UN, row.keep_UN.new_ones(len(row.keep_UN), tokens)], 1)
        seen = row.keep_UN.shape[1]
        causal_TN = torch.ones(tokens, seen, dtype=torch.bool, device=q_HTD.device).tril_(seen - tokens)
        visible_UTN = row.keep_UN[:, None] & causal_TN
        q_UGTD = q_HTD.unflatten(0, (k_UTD.shape[0], -1))
        logits = torch.einsum("ugtd,und->ugtn", q_UGTD.float(), k_UND.float()) * scaling
        attention = logits.masked_fill(~visible_UTN[:, None], -torch.inf).softmax(-1)
        out_UGTD = torch.einsum("ugtn,und->ugtd", attention.to(v_UND.dtype), v_UND)
        if row.entry.policy is not None:
            self._evict(row, attention)
        return out_UGTD.flatten(0, 1)

    @staticmethod
    def _as_stored(row: _Row, k_UTD: Tensor, v_UTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values as a step's attention sees them: through the storage part, the new tokens as they are."""
        store = row.entry.store
        k_UND, v_UND = row.k_UND, row.v_UND
        if store is not None:
            store.check(k_UND.shape[-1])
            k_UND, v_UND = k_UND.clone(), v_UND.clone()
            for head, keep_N in enumerate(row.keep_UN):
                stored = keep_N.nonzero().flatten()
                for x_UND, count, encode, decode in (
                    (k_UND, store.encoded_keys(len(stored)), store.encode_keys, store.decode_keys),
                    (v_UND, store.encoded_values(len(stored)), store.encode_values, store.decode_values),
                ):
                    if count:
                        old = stored[:count]
                        x_UND[head, old] = decode(encode(x_UND[head, old])).to(x_UND.dtype)
        return torch.cat([k_UND, k_UTD], 1), torch.cat([v_UND, v_UTD], 1)

    @staticmethod
    def _evict(row: _Row, attention_UGTN: Tensor) -> None:
        for head, keep_N in enumerate(row.keep_UN):
            slots = keep_N.nonzero().flatten()
            received = attention_UGTN[head][:, :, slots]
            row.state[head], keep = row.entry.policy.step(row.state[head], received, row.entry.tokens)
            if keep is not None:
                keep_N[:] = False
                keep_N[slots[keep]] = True

    def release(self, rows: Sequence[int]) -> None:
        for layer in self._layers:
            for row in rows:
                layer.pop(row, None)

    def room(self, rows: Sequence[int]) -> int:
        return 0  # every step makes new tensors

    def advance(self, rows: Sequence[int], tokens: int) -> None:
        raise AssertionError("there is no room")

    def counts(self) -> Any:
        return None

    def reset_counts(self, counts: Any) -> None: ...

    def lengths(self, row: int) -> list[list[int]]:
        return [layer[row].keep_UN.sum(1).tolist() for layer in self._layers]

    def used_bytes(self, row: int) -> int:
        return sum(layer[row].k_UND.nbytes + layer[row].v_UND.nbytes for layer in self._layers)

    def slack_bytes(self, row: int) -> int:
        return 0

    def bytes(self) -> int:
        held = {id(x): x.nbytes for layer in self._layers for row in layer.values() for x in (row.k_UND, row.v_UND)}
        return sum(held.values())
