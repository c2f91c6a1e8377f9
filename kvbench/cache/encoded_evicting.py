"""Rows that are encoded by a storage part and evict while decoding.

The arena of such rows holds a number for each token instead of its key and value: the row of `TokenPool.where` that
says where the token lies. Decode policies move these numbers as they move keys and values of plain rows. A token that
has left the arena frees its slot. Tokens of a block share its memory, which is free once all of them have left.

Tokens are encoded in the order in which they arrived, dropped ones included. In a block, a token that lives stands in
for those that left before it was encoded.

Shape suffixes: B rows of the call, H query heads, U KV heads, G = H / U, N segments of the call, S segments, T new
tokens, M tokens, W the longest segment of a call, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.cache.arena_layer import ArenaLayer
from kvbench.cache.base import Entry, NewTokens
from kvbench.cache.blocks import plain_if_none, spread
from kvbench.cache.layer_rows import LayerRows
from kvbench.cache.token_pool import TokenPool, grown, take
from kvbench.methods import store_answers
from kvbench.methods.storage import Half, Store
from kvbench_kernels.backends import Buffers, Lanes
from kvbench_kernels.backends.base import Backend, append


class BlockBackend(Backend):
    """A backend for an arena of token numbers. Policies and layouts treat them like keys and values.

    Attributes:
        owners, arrived, kept: per segment of the next call, its owner (a number for each row and KV head), the tokens
            that arrived in it so far, and those that were kept of the prompt.
    """

    name = "blocks"
    needs_bias = False

    def __init__(self, store: Store) -> None:
        self._halves: tuple[Half, Half] = plain_if_none(store.halves)
        self.pools: tuple[TokenPool, ...] = ()
        self._age = self._owner = torch.zeros(0, dtype=torch.int32)
        self.owners: Sequence[int] = ()
        self.arrived: Sequence[int] = ()
        self.kept: Sequence[int] = ()
        self._used = torch.zeros(0, dtype=torch.bool)

    def begin(self, entry: Entry, owners: Sequence[int], k_UTD: Tensor, v_UTD: Tensor) -> Tensor:
        """Hold the tokens that a row keeps of a prompt. Return their numbers [U, T, 1], 0 for the others."""
        if not self.pools:
            self.pools = tuple(
                TokenPool(half, k_UTD, side.head, None if side.token is None else side.token.flatten(0, 1))
                for half, side in zip(self._halves, entry.side, strict=True)
            )
            self._age, self._owner, self._used = (x.to(k_UTD.device) for x in (self._age, self._owner, self._used))
        head_M, token_M = entry.keep_UT.nonzero().unbind(1)
        kept = entry.keep_UT.sum(1).tolist()
        _, age_M = spread(kept, k_UTD.device)
        owner_M = torch.tensor(owners, device=k_UTD.device)[head_M]
        numbers = self._new(owner_M, age_M)
        for pool, side, x_UTD in zip(self.pools, entry.side, (k_UTD, v_UTD), strict=True):
            if pool.head_O is not None and side.head is not None:
                pool.head_O = grown(pool.head_O, max(owners) + 1)
                pool.head_O[list(owners)] = side.head
            for head, tokens in enumerate(torch.arange(len(numbers), device=k_UTD.device).split(kept)):
                at = token_M[tokens]  # head by head, so that few tokens are plain at a time
                pool.put(numbers[tokens], x_UTD[head, at], None if side.token is None else side.token[head, at])
                due = tokens[age_M[tokens] < store_answers.encoded(pool.half, kept[head], kept[head])]
                pool.encode(numbers[due], age_M[due], head_M[due], owner_M[due])
            pool.trim()
        numbers_UT1 = torch.zeros(*entry.keep_UT.shape, 1, dtype=torch.int32, device=k_UTD.device)
        numbers_UT1[head_M, token_M, 0] = numbers.int()
        return numbers_UT1

    def append_and_attend(
        self,
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        buffers: Buffers,
        lanes: Lanes,
        scaling: float,
        lengths: Callable[[], Sequence[int]] | None = None,
        settled: bool = False,
    ) -> Tensor:
        """Append T tokens to every segment, then attend to all of its tokens, causally: [B, H, T, D]."""
        batch, kv_heads, tokens, _ = k_BUTD.shape
        device = q_BHTD.device
        self._sweep(buffers)
        segments = lanes.segment_N.tolist()
        before = buffers.length_S[lanes.index_N].tolist()
        lane_M, column_M = spread(before, device)
        numbers = buffers.k_RD[buffers.start_S1[lanes.index_N][lane_M].long() + column_M, 0].long()
        for pool in self.pools:
            ends = [store_answers.encoded(pool.half, n, kept) for n, kept in zip(self.arrived, self.kept, strict=True)]
            due = self._age[numbers] < torch.tensor(ends, device=device)[lane_M]
            due &= pool.where[numbers] >= 0
            tokens_due = numbers[due]
            pool.encode(tokens_due, self._age[tokens_due].long(), lane_M[due], self._owner[tokens_due].long())
        lane_N = torch.arange(len(segments), device=device).repeat_interleave(tokens)
        age_N = torch.tensor(self.arrived, device=device)[lane_N] + torch.arange(tokens, device=device).repeat(
            len(segments)
        )
        new = self._new(torch.tensor(self.owners, device=device)[lane_N], age_N)
        for pool, x_BUTD in zip(self.pools, (k_BUTD, v_BUTD), strict=True):
            pool.put(new, x_BUTD.reshape(-1, x_BUTD.shape[-1]), None)
        numbers_BUT1 = new.int().view(batch, kv_heads, tokens, 1)
        append(buffers, lanes, numbers_BUT1, numbers_BUT1)
        q_NGTD = q_BHTD.unflatten(1, (kv_heads, -1)).flatten(0, 1)
        width, group = max(before) + tokens, q_NGTD.shape[1]
        k_NWD, v_NWD = (self._read(pool, buffers, lanes, width) for pool in self.pools)
        visible_NTW = _visible(buffers, lanes, tokens, width)
        out_N1QD = F.scaled_dot_product_attention(
            q_NGTD.flatten(1, 2)[:, None],
            k_NWD[:, None],
            v_NWD[:, None],
            attn_mask=visible_NTW.repeat(1, group, 1)[:, None],
            scale=scaling,
        )
        out_BHTD: Tensor = out_N1QD[:, 0].unflatten(1, (group, tokens)).unflatten(0, (batch, kv_heads)).flatten(1, 2)
        return out_BHTD

    def weights(self, q_NGTD: Tensor, buffers: Buffers, lanes: Lanes, scaling: float, width: int) -> Tensor:
        """Return the attention of queries to the slots of their lanes: [N, G, T, width] float32, 0 on empty slots."""
        tokens = q_NGTD.shape[2]
        k_NWD = self._read(self.pools[0], buffers, lanes, width).float()
        logits = torch.einsum("ngtd,nwd->ngtw", q_NGTD.float() * scaling, k_NWD)
        return logits.masked_fill_(~_visible(buffers, lanes, tokens, width)[:, None], -torch.inf).softmax(-1)

    def _read(self, pool: TokenPool, buffers: Buffers, lanes: Lanes, width: int) -> Tensor:
        """Return the tokens of some segments, decoded, by slot: [N, width, D], 0 on empty slots."""
        lengths = buffers.length_S[lanes.index_N].tolist()
        lane_M, column_M = spread(lengths, buffers.k_RD.device)
        numbers = buffers.k_RD[buffers.start_S1[lanes.index_N][lane_M].long() + column_M, 0].long()
        x_NWD = pool.plain_RD.new_zeros(len(lengths), width, pool.plain_RD.shape[1])
        x_NWD[lane_M, column_M] = pool.read(numbers, self._owner[numbers].long())
        return x_NWD

    def _sweep(self, buffers: Buffers) -> None:
        """Free the tokens that have left the arena."""
        lane_M, column_M = spread(buffers.length_S.tolist(), buffers.k_RD.device)
        numbers = buffers.k_RD[buffers.start_S1[lane_M].long() + column_M, 0].long()
        self._used.zero_()[numbers] = True
        for pool in self.pools:
            pool.sweep(numbers)

    def _new(self, owner_M: Tensor, age_M: Tensor) -> Tensor:
        """Return numbers for new tokens."""
        numbers, self._used = take(self._used, len(owner_M))
        self._age, self._owner = (grown(x, len(self._used)) for x in (self._age, self._owner))
        self._age[numbers], self._owner[numbers] = age_M.int(), owner_M.int()
        return numbers

    def nbytes(self) -> int:
        """Return the bytes that are allocated."""
        return sum(pool.nbytes() for pool in self.pools) + self._age.nbytes + self._owner.nbytes


class EncodedEvictingRows(LayerRows):
    """All rows of one layer that share a storage part and evict while decoding.

    Args:
        backend: attends to the tokens of the arena.
        arena: an arena of the numbers of tokens, which attends by `backend`.
    """

    def __init__(self, backend: BlockBackend, arena: ArenaLayer) -> None:
        self._backend, self._arena = backend, arena
        self._owner: dict[tuple[int, int], int] = {}
        self._kept: dict[int, list[int]] = {}
        self._generated: dict[int, int] = {}

    def add(self, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor, later: int = 0) -> None:
        for entry in entries:
            assert entry.store is not None
            entry.store.check(k_UTD.shape[-1])
            used = set(self._owner.values())
            free = (n for n in range(len(used) + len(k_UTD)) if n not in used)
            owners = [next(free) for _ in range(len(k_UTD))]
            self._owner |= {(entry.row, head): owner for head, owner in enumerate(owners)}
            self._kept[entry.row], self._generated[entry.row] = entry.keep_UT.sum(1).tolist(), 0
            numbers_UT1 = self._backend.begin(entry, owners, k_UTD, v_UTD)
            self._arena.add([entry], numbers_UT1, numbers_UT1)

    def attend(
        self,
        rows: tuple[int, ...],
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        scaling: float,
        new: NewTokens | None = None,
    ) -> Tensor:
        self._arena.settle()
        heads = range(k_BUTD.shape[1])
        self._backend.owners = [self._owner[row, head] for row in rows for head in heads]
        self._backend.kept = [self._kept[row][head] for row in rows for head in heads]
        self._backend.arrived = [self._kept[row][head] + self._generated[row] for row in rows for head in heads]
        out_BHTD = self._arena.attend(rows, q_BHTD, k_BUTD, v_BUTD, scaling, new)
        for row in rows:
            self._generated[row] += k_BUTD.shape[2]
        return out_BHTD

    def release(self, rows: Sequence[int]) -> None:
        """Forget rows; their slots are used again by the tokens that come next."""
        self._arena.release(rows)
        for row in rows:
            self._kept.pop(row, None)
            self._generated.pop(row, None)
        self._owner = {key: owner for key, owner in self._owner.items() if key[0] in self._kept}
        if not self._kept:
            self._backend.pools = ()

    def compact(self) -> None:
        """Take back the numbers of all released rows. Slots of their tokens are used again, not given back."""
        self._arena.compact()

    def lengths(self, row: int) -> list[int]:
        return self._arena.lengths(row)

    def peak(self, row: int) -> int:
        return self._arena.peak(row)

    def used_bytes(self, row: int) -> int:
        """Return the bytes of the stored tokens of a row, in whole blocks."""
        numbers, heads = self._arena.keys(row)[:, 0].long(), len(self._kept[row])
        return sum(pool.used_bytes(numbers) + heads * pool.side_bytes() for pool in self._backend.pools)

    def slack_bytes(self, row: int) -> int:
        """Return the bytes of a row's policy and of the numbers of its tokens."""
        return self._arena.used_bytes(row) + self._arena.slack_bytes(row)

    def bytes(self) -> int:
        return self._arena.bytes() + self._backend.nbytes()

    def settle(self) -> None:
        self._arena.settle()


def _visible(buffers: Buffers, lanes: Lanes, tokens: int, width: int) -> Tensor:
    """Return which slots the T newest tokens see: [N, T, W]."""
    device = buffers.k_RD.device
    length_N11 = buffers.length_S[lanes.index_N][:, None, None]
    newer_T1 = torch.arange(tokens - 1, -1, -1, device=device)[:, None]
    return torch.arange(width, device=device) < length_N11 - newer_T1
