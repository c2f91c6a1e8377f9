"""Rows that are more than plain segments: encoded storage, and eviction while decoding.

Shape suffixes: H query heads, U KV heads, G = H / U, T new tokens, S stored tokens of a head, N tokens,
D head dimension. Each KV head is handled by itself: lengths differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.cache.base import Entry


class SpecialRow(Protocol):
    """One row of one layer."""

    def attend(self, q_HTD: Tensor, k_UTD: Tensor, v_UTD: Tensor, scaling: float) -> Tensor: ...
    def lengths(self) -> list[int]: ...
    def used_bytes(self) -> int: ...
    def bytes(self) -> int: ...


def special_row(entry: Entry, k_UTD: Tensor, v_UTD: Tensor) -> SpecialRow:
    """The row an entry with a storage part or a decode policy wants."""
    if entry.policy is not None:
        return EvictingRow(entry, k_UTD, v_UTD)
    return EncodedRow(entry, k_UTD, v_UTD)


def causal_mask(tokens: int, stored: int, device: torch.device) -> Tensor:
    """[T, S] visibility of the T newest of S stored tokens."""
    return torch.ones(tokens, stored, dtype=torch.bool, device=device).tril_(stored - tokens)


class EvictingRow:
    """A decode policy cuts the row back to its budget after the attention of every step."""

    def __init__(self, entry: Entry, k_UTD: Tensor, v_UTD: Tensor) -> None:
        assert entry.score_UT is not None and entry.tokens is not None
        self._policy, self._tokens = entry.policy, entry.tokens
        self._k: list[Tensor] = []
        self._v: list[Tensor] = []
        self._length: list[int] = []
        self._state: list[Tensor] = []
        for head, keep_T in enumerate(entry.keep_UT):
            kept = int(keep_T.sum())
            # above the budget only a step's own new tokens are ever held; below it the row may still grow to it
            capacity = max(kept, min(self._tokens, kept + entry.reserve)) + 1
            for buffers, x_UTD in ((self._k, k_UTD), (self._v, v_UTD)):
                buffer = x_UTD.new_zeros(capacity, x_UTD.shape[-1])
                buffer[:kept] = x_UTD[head, keep_T]
                buffers.append(buffer)
            self._length.append(kept)
            self._state.append(self._policy.start(entry.score_UT[head, keep_T]))

    def attend(self, q_HTD: Tensor, k_UTD: Tensor, v_UTD: Tensor, scaling: float) -> Tensor:
        tokens = q_HTD.shape[1]
        q_UGTD = q_HTD.unflatten(0, (k_UTD.shape[0], -1))
        outs = []
        for head in range(k_UTD.shape[0]):
            stored = self._append(head, k_UTD[head], v_UTD[head])
            k_SD, v_SD = self._k[head][:stored], self._v[head][:stored]
            logits = (q_UGTD[head] @ k_SD.T).float() * scaling
            logits.masked_fill_(~causal_mask(tokens, stored, k_SD.device), -torch.inf)
            attention_GTS = logits.softmax(-1)
            outs.append(attention_GTS.to(v_SD.dtype) @ v_SD)
            self._state[head], keep = self._policy.step(self._state[head], attention_GTS, self._tokens)
            if keep is not None:
                self._length[head] = len(keep)
                for buffer in (self._k[head], self._v[head]):
                    buffer[: len(keep)] = buffer[keep]
        return torch.stack(outs).flatten(0, 1)

    def _append(self, head: int, k_TD: Tensor, v_TD: Tensor) -> int:
        stored = self._length[head] + len(k_TD)
        for buffers, x_TD in ((self._k, k_TD), (self._v, v_TD)):
            if stored > len(buffers[head]):
                buffers[head] = F.pad(buffers[head], (0, 0, 0, stored - len(buffers[head])))
            buffers[head][self._length[head] : stored] = x_TD
        self._length[head] = stored
        return stored

    def lengths(self) -> list[int]:
        return list(self._length)

    def used_bytes(self) -> int:
        return sum(
            2 * n * buffer.shape[1] * buffer.element_size() for n, buffer in zip(self._length, self._k, strict=True)
        )

    def bytes(self) -> int:
        return sum(buffer.nbytes for buffer in [*self._k, *self._v, *self._state])


class _Encoded:
    """Encoded tokens of one head, in buffers with room for `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._tokens = capacity, 0
        self._buffers: list[Tensor] = []

    def append(self, encoded: Sequence[Tensor], tokens: int) -> None:
        """`encoded` tensors hold `tokens` tokens in a leading dimension proportional to them."""
        if not self._buffers or self._tokens + tokens > self._capacity:
            self._capacity = max(self._capacity, 2 * self._tokens, self._tokens + tokens)
            grown = [x.new_zeros(-(-self._capacity * len(x) // tokens), *x.shape[1:]) for x in encoded]
            for fresh, old in zip(grown, self._live(), strict=False):
                fresh[: len(old)] = old
            self._buffers = grown
        for buffer, x in zip(self._buffers, encoded, strict=True):
            begin = self._tokens * len(x) // tokens
            buffer[begin : begin + len(x)] = x
        self._rows_per_token = [len(x) / tokens for x in encoded]
        self._tokens += tokens

    def _live(self) -> list[Tensor]:
        if not self._buffers:
            return []
        return [b[: round(self._tokens * r)] for b, r in zip(self._buffers, self._rows_per_token, strict=True)]

    def read(self) -> tuple[Tensor, ...] | None:
        return tuple(self._live()) if self._tokens else None

    def used_bytes(self) -> int:
        return sum(x.nbytes for x in self._live())

    def bytes(self) -> int:
        return sum(x.nbytes for x in self._buffers)


class EncodedRow:
    """Older tokens encoded by a storage part, the newest as they came."""

    def __init__(self, entry: Entry, k_UTD: Tensor, v_UTD: Tensor) -> None:
        self._store = entry.store
        self._store.check(k_UTD.shape[-1])
        self._heads = [
            (
                _Half(
                    k_TD[keep_T],
                    entry.reserve,
                    self._store.encoded_keys,
                    self._store.encode_keys,
                    self._store.decode_keys,
                ),
                _Half(
                    v_TD[keep_T],
                    entry.reserve,
                    self._store.encoded_values,
                    self._store.encode_values,
                    self._store.decode_values,
                ),
            )
            for k_TD, v_TD, keep_T in zip(k_UTD, v_UTD, entry.keep_UT, strict=True)
        ]

    def attend(self, q_HTD: Tensor, k_UTD: Tensor, v_UTD: Tensor, scaling: float) -> Tensor:
        tokens = q_HTD.shape[1]
        q_UGTD = q_HTD.unflatten(0, (k_UTD.shape[0], -1))
        outs = []
        for head, (keys, values) in enumerate(self._heads):
            k_SD, v_SD = keys.read(k_UTD[head]), values.read(v_UTD[head])
            mask = causal_mask(tokens, len(k_SD), k_SD.device)
            outs.append(F.scaled_dot_product_attention(q_UGTD[head], k_SD, v_SD, attn_mask=mask, scale=scaling))
            keys.append(k_UTD[head])
            values.append(v_UTD[head])
        return torch.stack(outs).flatten(0, 1)

    def lengths(self) -> list[int]:
        return [keys.length for keys, _ in self._heads]

    def used_bytes(self) -> int:
        return sum(half.used_bytes() for pair in self._heads for half in pair)

    def bytes(self) -> int:
        return sum(half.bytes() for pair in self._heads for half in pair)


class _Half:
    """Keys or values of one head: an encoded prefix and a plain tail."""

    def __init__(self, x_ND: Tensor, reserve: int, encoded: Any, encode: Any, decode: Any) -> None:
        self._encoded_of, self._encode, self._decode = encoded, encode, decode
        self.length = 0
        self._encoded = _Encoded(max(encoded(n) for n in range(len(x_ND), len(x_ND) + reserve + 1)))
        self._plain_ND = x_ND[:0]
        self.append(x_ND)

    def append(self, x_TD: Tensor) -> None:
        done = self.length - len(self._plain_ND)
        self.length += len(x_TD)
        plain_ND = torch.cat([self._plain_ND, x_TD])
        due = self._encoded_of(self.length) - done
        if due > 0:
            self._encoded.append(self._encode(plain_ND[:due]), due)
            plain_ND = plain_ND[due:]
        # a copy, so that the tail holds its own bytes and not those it was cut from
        self._plain_ND = plain_ND.clone()

    def read(self, x_TD: Tensor) -> Tensor:
        """All tokens decoded, and the new ones behind them."""
        encoded = self._encoded.read()
        parts = [self._plain_ND, x_TD]
        return torch.cat(parts if encoded is None else [self._decode(encoded).to(x_TD.dtype), *parts])

    def used_bytes(self) -> int:
        return self._encoded.used_bytes() + self._plain_ND.nbytes

    def bytes(self) -> int:
        return self._encoded.bytes() + self._plain_ND.nbytes
