"""Rows of which a decode step reads some blocks only. Nothing of them is evicted, so all KV heads are equally long.

Shape suffixes: B rows of the call, H query heads, U KV heads, G = H / U, T new tokens, S slots, M blocks, C chosen
blocks, N tokens that a query head reads, X numbers of a summary, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.cache.base import Entry, NewTokens, Reads
from kvbench.cache.layer_rows import LayerRows
from kvbench.methods.looking import Look, chosen_blocks, summary_of


@dataclass
class _Row:
    """The tokens of a row in the order of their positions, and the summaries of its finished blocks."""

    k_USD: Tensor
    v_USD: Tensor
    summary_UMX: Tensor
    length: int
    budget: int
    reads: Reads

    @property
    def nbytes(self) -> int:
        """The bytes that are allocated, those of the summaries included."""
        return self.k_USD.nbytes + self.v_USD.nbytes + self.summary_UMX.nbytes


class LookRows(LayerRows):
    """All rows of one layer that share a look.

    Args:
        layer: position of the layer among those that are compressed.
    """

    def __init__(self, look: Look, layer: int) -> None:
        self._look, self._layer = look, layer
        self._rows: dict[int, _Row] = {}

    def add(self, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor, later: int = 0) -> None:
        """Store the keys and values of a prompt. The rows keep all of them."""
        heads, tokens, dim = k_UTD.shape
        done = tokens // self._look.block
        summary_UMX = self._summaries(k_UTD[:, : done * self._look.block])
        for entry in entries:
            assert entry.reads is not None
            k_USD, v_USD = (x.new_zeros(heads, tokens + entry.reserve, dim) for x in (k_UTD, v_UTD))
            k_USD[:, :tokens], v_USD[:, :tokens] = k_UTD, v_UTD
            reads = Reads(entry.reads_all(self._layer))
            self._rows[entry.row] = _Row(k_USD, v_USD, summary_UMX, tokens, entry.reads, reads)

    def attend(
        self,
        rows: tuple[int, ...],
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        scaling: float,
        new: NewTokens | None = None,
    ) -> Tensor:
        """Append T new tokens to `rows`, and attend to those that the look chooses: [B, H, T, D]."""
        outs = []
        for row, q_HTD, k_UTD, v_UTD in zip(rows, q_BHTD, k_BUTD, v_BUTD, strict=True):
            self._append(self._rows[row], k_UTD, v_UTD)
            outs.append(self._attend(self._rows[row], q_HTD.unflatten(0, (len(k_UTD), -1)), scaling).flatten(0, 1))
        return torch.stack(outs)

    def _append(self, row: _Row, k_UTD: Tensor, v_UTD: Tensor) -> None:
        begin, end = row.length, row.length + k_UTD.shape[1]
        if end > row.k_USD.shape[1]:
            more = max(end - row.k_USD.shape[1], 64, row.length // 2)
            row.k_USD, row.v_USD = (F.pad(x, (0, 0, 0, more)) for x in (row.k_USD, row.v_USD))
        row.k_USD[:, begin:end], row.v_USD[:, begin:end] = k_UTD, v_UTD
        row.length = end
        done, block = row.summary_UMX.shape[1], self._look.block
        if end // block > done:
            new_UMX = self._summaries(row.k_USD[:, done * block : end // block * block])
            row.summary_UMX = torch.cat([row.summary_UMX, new_UMX], 1)

    def _attend(self, row: _Row, q_UGTD: Tensor, scaling: float) -> Tensor:
        tokens = q_UGTD.shape[2]
        k_USD, v_USD = row.k_USD[:, : row.length], row.v_USD[:, : row.length]
        if tokens > 1 or row.reads.is_whole or row.length <= row.budget:
            seen_TS = torch.ones(tokens, row.length, dtype=torch.bool, device=q_UGTD.device).tril_(row.length - tokens)
            if tokens == 1:
                row.reads.count(torch.tensor(row.length), q_UGTD.shape[0] * q_UGTD.shape[1])
            everything: Tensor = F.scaled_dot_product_attention(
                q_UGTD,
                k_USD[:, None].expand(-1, q_UGTD.shape[1], -1, -1),
                v_USD[:, None].expand(-1, q_UGTD.shape[1], -1, -1),
                attn_mask=seen_TS,
                scale=scaling,
            )
            return everything
        block, summary_UMX = self._look.block, row.summary_UMX
        if row.length % block:
            last_UBD = k_USD[:, row.length // block * block :]
            summary_UMX = torch.cat([summary_UMX, summary_of(self._look, last_UBD)[:, None]], 1)
        blocks_UGC = chosen_blocks(self._look, q_UGTD[:, :, 0], summary_UMX, row.budget)
        slots_UGN = (blocks_UGC[..., None] * block + torch.arange(block, device=blocks_UGC.device)).flatten(2)
        live_UGN = slots_UGN < row.length
        row.reads.count(live_UGN.sum(-1))
        at_UQ = slots_UGN.clamp(max=row.length - 1).flatten(1)
        k_UGND, v_UGND = (
            x.gather(1, at_UQ[..., None].expand(-1, -1, x.shape[2])).unflatten(1, slots_UGN.shape[1:])
            for x in (k_USD, v_USD)
        )
        mask_UG1N = live_UGN[:, :, None]
        out: Tensor = F.scaled_dot_product_attention(q_UGTD, k_UGND, v_UGND, attn_mask=mask_UG1N, scale=scaling)
        return out

    def _summaries(self, k_UTD: Tensor) -> Tensor:
        """Return the summaries [U, M, X] of finished blocks."""
        if not k_UTD.shape[1]:
            return summary_of(self._look, k_UTD.new_zeros(len(k_UTD), 1, k_UTD.shape[2]))[:, None][:, :0]
        k_NBD = k_UTD.unflatten(1, (-1, self._look.block)).flatten(0, 1)
        summary_UMX: Tensor = summary_of(self._look, k_NBD).unflatten(0, (len(k_UTD), -1))
        return summary_UMX

    def release(self, rows: Sequence[int]) -> None:
        """Forget rows and free their memory."""
        for row in rows:
            self._rows.pop(row, None)

    def lengths(self, row: int) -> list[int]:
        held = self._rows[row]
        return [held.length] * len(held.k_USD)

    def peak(self, row: int) -> int:
        return self._rows[row].length  # none are evicted

    def reads(self, row: int) -> Reads:
        return self._rows[row].reads

    def used_bytes(self, row: int) -> int:
        held = self._rows[row]
        return 2 * held.k_USD[:, : held.length].numel() * held.k_USD.itemsize

    def slack_bytes(self, row: int) -> int:
        """Return the bytes of a row's free slots and of its summaries."""
        return self._rows[row].nbytes - self.used_bytes(row)

    def bytes(self) -> int:
        return sum(row.nbytes for row in self._rows.values())
