"""Rows that evict while decoding.

Shape suffixes: H query heads, U KV heads, G = H / U, T new tokens, S stored tokens, N tokens, D head dimension.
KV heads of a row that store equally many tokens are handled together; they stay equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.cache.base import Entry


class SpecialRow(Protocol):
    """One row of one layer."""

    def attend(self, q_HTD: Tensor, k_UTD: Tensor, v_UTD: Tensor, scaling: float) -> Tensor:
        """Append T new tokens and attend causally: [H, T, D]."""
        ...

    def lengths(self) -> list[int]:
        """Return the stored tokens per KV head."""
        ...

    def used_bytes(self) -> int:
        """Return the bytes of the stored tokens."""
        ...

    def bytes(self) -> int:
        """Return the bytes allocated."""
        ...


def special_row(entry: Entry, k_UTD: Tensor, v_UTD: Tensor) -> SpecialRow:
    """Return the row for an entry with a decode policy."""
    return EvictingRow(entry, k_UTD, v_UTD)


def causal_mask(tokens: int, stored: int, device: torch.device) -> Tensor:
    """Return which of S stored tokens the T newest of them see: [T, S]."""
    return torch.ones(tokens, stored, dtype=torch.bool, device=device).tril_(stored - tokens)


def equal_heads(entry: Entry) -> list[tuple[Tensor, int | None]]:
    """Return groups of KV heads that keep equally many tokens under the same limit: their indices, and the limit."""
    kept = entry.keep_UT.sum(1).tolist()
    limits: Sequence[int | None] = [None] * len(kept) if entry.limit_U is None else entry.limit_U
    groups: dict[tuple[int, int | None], list[int]] = {}
    for head, key in enumerate(zip(kept, limits, strict=True)):
        groups.setdefault(key, []).append(head)
    device = entry.keep_UT.device
    return [(torch.tensor(heads, device=device), limit) for (_, limit), heads in groups.items()]


def kept_tokens(x_UTD: Tensor, keep_UT: Tensor, heads: Tensor) -> Tensor:
    """Return the kept tokens of heads that keep equally many: [U, S, D]."""
    kept: Tensor = x_UTD[heads][keep_UT[heads]].unflatten(0, (len(heads), -1))
    return kept


class EvictingRow:
    """A row that a decode policy cuts back to its budget after the attention of every step."""

    def __init__(self, entry: Entry, k_UTD: Tensor, v_UTD: Tensor) -> None:
        self._groups = [_EvictingHeads(entry, heads, limit, k_UTD, v_UTD) for heads, limit in equal_heads(entry)]
        self._order = torch.cat([g.heads for g in self._groups]).argsort()

    def attend(self, q_HTD: Tensor, k_UTD: Tensor, v_UTD: Tensor, scaling: float) -> Tensor:
        q_UGTD = q_HTD.unflatten(0, (k_UTD.shape[0], -1))
        outs = [g.attend(q_UGTD[g.heads], k_UTD[g.heads], v_UTD[g.heads], scaling) for g in self._groups]
        return torch.cat(outs)[self._order].flatten(0, 1)

    def lengths(self) -> list[int]:
        each = [g.length for g in self._groups for _ in g.heads]
        return [each[i] for i in self._order.tolist()]

    def used_bytes(self) -> int:
        return sum(2 * g.k[:, : g.length].nbytes for g in self._groups)

    def bytes(self) -> int:
        return sum(x.nbytes for g in self._groups for x in (g.k, g.v, g.state))


class _EvictingHeads:
    """Heads of an evicting row that store equally many tokens."""

    def __init__(self, entry: Entry, heads: Tensor, limit: int | None, k_UTD: Tensor, v_UTD: Tensor) -> None:
        assert entry.policy is not None and entry.score_UT is not None and limit is not None
        self.heads, self._policy, self._limit = heads, entry.policy, limit
        self.length = int(entry.keep_UT[heads[0]].sum())
        self.state = self._policy.start(kept_tokens(entry.score_UT[..., None], entry.keep_UT, heads)[..., 0])
        # at the limit, a row only ever adds the new tokens of one step; below it, the row may still grow
        room = max(self.length, min(limit, self.length + entry.reserve)) + 1 - self.length
        self.k, self.v = (F.pad(kept_tokens(x, entry.keep_UT, heads), (0, 0, 0, room)) for x in (k_UTD, v_UTD))

    def attend(self, q_UGTD: Tensor, k_UTD: Tensor, v_UTD: Tensor, scaling: float) -> Tensor:
        tokens = k_UTD.shape[1]
        stored = self.length + tokens
        if stored > self.k.shape[1]:
            room = max(stored, min(self._limit + 1, stored + max(64, stored // 2))) - self.k.shape[1]
            self.k, self.v = (F.pad(x, (0, 0, 0, room)) for x in (self.k, self.v))
        self.k[:, self.length : stored], self.v[:, self.length : stored] = k_UTD, v_UTD
        k_USD, v_USD = self.k[:, None, :stored], self.v[:, None, :stored]
        # in float32: unscaled logits rounded to half precision are inaccurate
        logits_UGTS = q_UGTD.float() @ k_USD.float().transpose(-1, -2) * scaling
        if tokens > 1:
            logits_UGTS.masked_fill_(~causal_mask(tokens, stored, k_UTD.device), -torch.inf)
        attention_UGTS = logits_UGTS.softmax(-1)
        out_UGTD = attention_UGTS.to(v_USD.dtype) @ v_USD
        self.state, keep_US = self._policy.step(self.state, attention_UGTS, self._limit)
        self.length = stored
        if keep_US is not None:
            self.length = keep_US.shape[1]
            at = keep_US[..., None].expand(-1, -1, k_UTD.shape[-1])
            for buffer in (self.k, self.v):
                buffer[:, : self.length] = buffer.gather(1, at)
            # after a long question the buffer shrinks, but never below the tokens that the policy holds
            capacity = max(self.length, self._limit) + 1
            if self.k.shape[1] > capacity:
                self.k, self.v = (x[:, :capacity].clone() for x in (self.k, self.v))
        return out_UGTD
