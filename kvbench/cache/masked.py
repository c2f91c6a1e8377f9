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
from kvbench.methods.decoding import Decoding, Slots, Start
from kvbench.methods.storage import Half, Side


@dataclass
class _Row:
    entry: Entry
    layer: int
    k_UND: Tensor
    v_UND: Tensor
    keep_UN: Tensor
    state_UN: Tensor | None  # of the decode policy; one column per token seen
    peak: int  # most tokens that a head held after a step


class MaskedCache:
    """A cache with the interface of `RaggedCache` that saves no memory."""

    kernel = "torch"
    prompt = None

    def __init__(self, num_layers: int) -> None:
        self._layers: list[dict[int, _Row]] = [{} for _ in range(num_layers)]

    def add(self, layer: int, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor) -> None:
        for entry in entries:
            keep_UT = entry.keep_UT.clone()
            state_UT = None
            if entry.policy is not None:
                at_UT = torch.arange(keep_UT.shape[1], device=keep_UT.device).expand_as(keep_UT)
                start = Start(layer, len(self._layers), keep_UT.shape[1], at_UT, keep_UT, entry.score_UT)
                state_UT = entry.policy.policy.begin(start).float()
            peak = int(keep_UT.sum(1).max())
            self._layers[layer][entry.row] = _Row(entry, layer, k_UTD, v_UTD, keep_UT, state_UT, peak)

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
            _evict(row, row.entry.policy, attention)
        row.peak = max(row.peak, int(row.keep_UN.sum(1).max()))
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

    def release(self, rows: Sequence[int]) -> None:
        for layer in self._layers:
            for row in rows:
                layer.pop(row, None)

    def lengths(self, row: int) -> list[list[int]]:
        return [layer[row].keep_UN.sum(1).tolist() for layer in self._layers]

    def peak(self, row: int) -> int:
        return max(layer[row].peak for layer in self._layers)

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


def _evict(row: _Row, decoding: Decoding, attention_UGTN: Tensor) -> None:
    """Apply a decode policy after a step. Columns are positions; evicted tokens leave holes."""
    policy, base_U = decoding.policy, row.entry.base_U
    assert row.state_UN is not None and base_U is not None
    heads, seen = row.keep_UN.shape
    new, span = attention_UGTN.shape[2], row.entry.keep_UT.shape[1]
    device = row.keep_UN.device
    row.state_UN = torch.cat([row.state_UN, row.state_UN.new_zeros(heads, new)], 1)
    slots = Slots(
        row.layer,
        torch.tensor([span], device=device),
        torch.tensor([seen], device=device),
        torch.arange(seen, device=device).expand(1, heads, -1),
        row.keep_UN[None],
        row.state_UN[None],
        aligned=True,
    )
    if policy.reads == "all":
        policy.observe(slots, attention_UGTN[None])
    elif policy.reads == "last":
        policy.observe(slots, attention_UGTN[None, :, :, -1:])
    row.state_UN = slots.state_BUC[0]
    steps = seen - span
    limit = policy.limit(torch.tensor([base_U], device=device), torch.tensor([[steps]], device=device), row.layer)
    slots.limit_BU = limit
    if limit is None:
        every = max(1, decoding.interval)
        if any(step % every == 0 for step in range(steps - new + 1, steps + 1)):
            row.keep_UN = row.keep_UN & ~policy.drop(slots)[0]
        return
    scheduled = decoding.interval and any(step % decoding.interval == 0 for step in range(steps - new + 1, steps + 1))
    worth_UN = policy.drop(slots)[0]
    for head, most in enumerate(limit[0].tolist()):
        held = row.keep_UN[head].nonzero().flatten().tolist()
        if len(held) > most + (0 if scheduled else decoding.buffer):
            worth = worth_UN[head].tolist()
            held.sort(key=lambda token: (worth[token], -token))
            row.keep_UN[head, held[: len(held) - most]] = False
