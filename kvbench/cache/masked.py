"""`MaskedCache`: every token stays, and evicted tokens are masked. A simulation, and the oracle of the tests.

Deliberately naive: one row at a time, full-length keys and values, explicit softmax. It saves no memory. Its bytes are
those that it allocates; its lengths are those of a ragged cache.

Shape suffixes: B rows, H query heads, U KV heads, G = H / U, T new tokens, N tokens seen, S stored tokens,
D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.base import Entry
from kvbench.cache.rows import equal_heads
from kvbench.methods.storage import Half, Side


@dataclass
class _Group:
    """KV heads that evict together: they store equally many tokens, under the same limit."""

    heads: Tensor
    limit: int
    state_US: Tensor


@dataclass
class _Row:
    entry: Entry
    k_UND: Tensor
    v_UND: Tensor
    keep_UN: Tensor
    groups: list[_Group]


class MaskedCache:
    """A cache with the interface of `RaggedCache` that saves no memory."""

    kernel = "torch"
    prompt = None

    def __init__(self, num_layers: int) -> None:
        self._layers: list[dict[int, _Row]] = [{} for _ in range(num_layers)]

    def add(self, layer: int, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor) -> None:
        for entry in entries:
            self._layers[layer][entry.row] = _Row(entry, k_UTD, v_UTD, entry.keep_UT.clone(), _groups(entry))

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
        self._evict(row, attention)
        return out_UGTD.flatten(0, 1)

    @staticmethod
    def _as_stored(row: _Row, k_UTD: Tensor, v_UTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values as a step sees them: old tokens after encoding and decoding, new tokens unchanged."""
        store = row.entry.store
        k_UND, v_UND = row.k_UND, row.v_UND
        if store is not None:
            store.check(k_UND.shape[-1])
            k_UND, v_UND = (
                _as_held(row.entry, index, half, x_UND, row.keep_UN)
                for index, (half, x_UND) in enumerate(((store.keys, k_UND), (store.values, v_UND)))
            )
        return torch.cat([k_UND, k_UTD], 1), torch.cat([v_UND, v_UTD], 1)

    @staticmethod
    def _evict(row: _Row, attention_UGTN: Tensor) -> None:
        policy = row.entry.policy
        for group in row.groups:
            assert policy is not None
            slots_US = torch.stack([row.keep_UN[head].nonzero().flatten() for head in group.heads])
            received_UGTS = torch.stack(
                [attention_UGTN[head][:, :, slots] for head, slots in zip(group.heads, slots_US, strict=True)]
            )
            group.state_US, keep_US = policy.step(group.state_US, received_UGTS, group.limit)
            if keep_US is not None:
                row.keep_UN[group.heads] = False
                row.keep_UN[group.heads[:, None], slots_US.gather(1, keep_US)] = True

    def release(self, rows: Sequence[int]) -> None:
        for layer in self._layers:
            for row in rows:
                layer.pop(row, None)

    def lengths(self, row: int) -> list[list[int]]:
        return [layer[row].keep_UN.sum(1).tolist() for layer in self._layers]

    def used_bytes(self, row: int) -> int:
        return sum(layer[row].k_UND.nbytes + layer[row].v_UND.nbytes for layer in self._layers)

    def slack_bytes(self, row: int) -> int:
        return 0

    def bytes(self) -> int:
        held = {id(x): x.nbytes for layer in self._layers for row in layer.values() for x in (row.k_UND, row.v_UND)}
        return sum(held.values())


def _as_held(entry: Entry, index: int, half: Half | None, x_UND: Tensor, keep_UN: Tensor) -> Tensor:
    """Return keys (index 0) or values (1) with the encoded tokens as they come back, head by head."""
    if half is None:
        return x_UND
    side, x_UND = entry.side[index] if entry.side else Side(), x_UND.clone()
    for head, (kept, keep_N) in enumerate(zip(entry.keep_UT.sum(1).tolist(), keep_UN, strict=True)):
        stored = keep_N.nonzero().flatten()
        old = stored[: half.encoded(len(stored), kept)]
        if not len(old):
            continue
        x_NBD = x_UND[head, old].unflatten(0, (-1, half.block))
        head_N = None if side.head is None else side.head[head].expand(len(x_NBD), *side.head.shape[1:])
        token_NB = None
        if side.token is not None:
            generated = x_UND.shape[1] - side.token.shape[1]
            of_all = torch.cat([side.token[head], side.token.new_zeros(generated, *side.token.shape[2:])])
            token_NB = of_all[old].unflatten(0, (-1, half.block))
        held_NBD = half.decode(half.encode(x_NBD, head_N, token_NB), head_N, x_UND.shape[-1])
        x_UND[head, old] = held_NBD.flatten(0, 1).to(x_UND.dtype)
    return x_UND


def _groups(entry: Entry) -> list[_Group]:
    if entry.policy is None:
        return []
    assert entry.score_UT is not None
    groups = []
    for heads, limit in equal_heads(entry):
        assert limit is not None
        score_US = torch.stack([entry.score_UT[head][entry.keep_UT[head]] for head in heads])
        groups.append(_Group(heads, limit, entry.policy.start(score_US)))
    return groups
