"""Layers that look back a limited number of tokens: sliding windows and chunks. They are never compressed.

Shape suffixes: B rows of the call, R rows of the layer, H query heads, U KV heads, T tokens of the call, S keys,
W slots, D head dimension.

The token at position p lies in slot p mod `size` of its row, so a new token replaces the one that just left the window.
Attention does not depend on the order of the slots. Rows that are shorter than the window have fewer slots, as many as
the longest of them needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LocalMask:
    """The keys that a query of a local layer sees: the last `size` positions, itself included.

    In a chunked layer a query sees its own chunk of `size` positions only (Llama 4).
    """

    size: int
    chunked: bool = False

    def visible(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Return which keys each query sees; both arguments broadcast. Negative key positions are empty slots."""
        back = query_positions - key_positions
        seen = (back >= 0) & (back < self.size) & (key_positions >= 0)
        if self.chunked:
            seen &= query_positions // self.size == key_positions // self.size
        return seen


def ring_slots(tokens: int, size: int) -> int:
    """Return the slots of a row that holds this many tokens, with room for some more, but no more than a window."""
    return min(size, tokens + max(16, tokens // 8))


def attend_prompt(q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float, mask: LocalMask) -> Tensor:
    """Return the attention of a whole prompt under a local mask, in blocks of queries: [B, H, T, D]."""
    tokens, block = q_BHTD.shape[2], max(mask.size, 256)
    position_T = torch.arange(tokens, device=q_BHTD.device)
    outs = []
    for begin in range(0, tokens, block):
        end, first = min(begin + block, tokens), max(0, begin - mask.size + 1)
        visible_TS = mask.visible(position_T[begin:end, None], position_T[None, first:end])
        outs.append(
            F.scaled_dot_product_attention(
                q_BHTD[:, :, begin:end],
                k_BUTD[:, :, first:end],
                v_BUTD[:, :, first:end],
                attn_mask=visible_TS,
                scale=scaling,
                enable_gqa=True,
            )
        )
    return torch.cat(outs, 2)


class LocalLayer:
    """The recent keys and values of all rows in one local layer."""

    def __init__(self, mask: LocalMask) -> None:
        self.mask = mask
        self._rows: list[int] = []
        self._seen: dict[int, int] = {}
        self._kv: tuple[Tensor, Tensor] | None = None  # [R, U, W, D] each

    def add(self, rows: Sequence[int], k_BUTD: Tensor, v_BUTD: Tensor) -> None:
        """Store the end of one prompt for each of its rows; B is 1 where all of them have the same keys and values."""
        size, tokens = self.mask.size, k_BUTD.shape[2]
        first = max(0, tokens - size)
        slot_T = torch.arange(first, tokens, device=k_BUTD.device) % size
        width = self._widen(tokens)
        new = []
        for x_BUTD in (k_BUTD, v_BUTD):
            ring_BUWD = x_BUTD.new_zeros(*x_BUTD.shape[:2], width, x_BUTD.shape[3])
            ring_BUWD[:, :, slot_T] = x_BUTD[:, :, first:]
            new.append(ring_BUWD.expand(len(rows), -1, -1, -1))
        old = self._kv
        k_RUWD, v_RUWD = (x.contiguous() if old is None else torch.cat([old[i], x]) for i, x in enumerate(new))
        self._kv = k_RUWD, v_RUWD
        self._rows += rows
        self._seen |= dict.fromkeys(rows, tokens)

    def fork(self, row: int, copies: Sequence[int]) -> None:
        """Give new rows what a row holds."""
        assert self._kv is not None
        at = torch.tensor([*range(len(self._rows)), *[self._rows.index(row)] * len(copies)], device=self._kv[0].device)
        self._kv = self._kv[0][at], self._kv[1][at]
        self._rows += copies
        self._seen |= dict.fromkeys(copies, self._seen[row])

    def attend(self, rows: Sequence[int], q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        """Append T new tokens to `rows` and attend to the tokens that each of them sees: [B, H, T, D]."""
        self._widen(max(self._seen[row] for row in rows) + q_BHTD.shape[2])
        assert self._kv is not None
        k_RUWD, v_RUWD = self._kv
        device, size = q_BHTD.device, self.mask.size
        everyone = list(rows) == self._rows
        place = {row: index for index, row in enumerate(self._rows)}
        row_B = torch.tensor([place[row] for row in rows], device=device)
        seen_B = torch.tensor([self._seen[row] for row in rows], device=device)
        slot_W = torch.arange(k_RUWD.shape[2], device=device)
        outs = []
        for t in range(q_BHTD.shape[2]):
            position_B1 = (seen_B + t)[:, None]
            k_RUWD[row_B, :, position_B1[:, 0] % size] = k_BUTD[:, :, t]
            v_RUWD[row_B, :, position_B1[:, 0] % size] = v_BUTD[:, :, t]
            key_position_BW = position_B1 - (position_B1 - slot_W) % size
            outs.append(
                F.scaled_dot_product_attention(
                    q_BHTD[:, :, t : t + 1],
                    k_RUWD if everyone else k_RUWD[row_B],
                    v_RUWD if everyone else v_RUWD[row_B],
                    attn_mask=self.mask.visible(position_B1, key_position_BW)[:, None, None],
                    scale=scaling,
                    enable_gqa=True,
                )
            )
        for row in rows:
            self._seen[row] += q_BHTD.shape[2]
        return torch.cat(outs, 2)

    def _widen(self, tokens: int) -> int:
        """Make room for rows of this many tokens. Return the slots of each row."""
        size, width = self.mask.size, 0 if self._kv is None else self._kv[0].shape[2]
        if min(tokens, size) <= width:
            return width
        width = ring_slots(tokens, size)
        if self._kv is not None:  # rows with fewer slots than the window hold all of their tokens in order
            k_RUWD, v_RUWD = (F.pad(x, (0, 0, 0, width - x.shape[2])) for x in self._kv)
            self._kv = k_RUWD, v_RUWD
        return width

    def release(self, rows: Sequence[int]) -> None:
        """Forget finished rows and free their memory."""
        gone = set(rows)
        stay = [index for index, row in enumerate(self._rows) if row not in gone]
        if self._kv is None or len(stay) == len(self._rows):
            return
        for row in gone:
            self._seen.pop(row, None)
        width = ring_slots(max(self._seen.values(), default=0), self.mask.size)
        k_RUWD, v_RUWD = (x[torch.tensor(stay, dtype=torch.long, device=x.device), :, :width] for x in self._kv)
        self._kv = (k_RUWD, v_RUWD) if stay else None
        self._rows = [self._rows[index] for index in stay]
