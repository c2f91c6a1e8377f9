"""The keys, or the values, of tokens that are encoded in blocks and may leave one by one.

Tokens of a block share its memory, which is free once all of them have left. Tokens are encoded in the order in which
they arrived, dropped ones included. In a block, a token that lives stands in for those that left before it was encoded.

Shape suffixes: M tokens, R plain slots, n blocks, b tokens of a block, O segments that own tokens (row x KV head),
D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.cache.rows import RowBuffer, empty_blocks
from kvbench.methods import store_answers
from kvbench.methods.storage import Half


class TokenPool:
    """The keys, or the values, of all tokens in blocks and plain slots that are given out one by one.

    Attributes:
        where: per token, its plain slot, or -1 - place of an encoded token, counted over all blocks.
    """

    def __init__(self, half: Half, like: Tensor, head_O: Tensor | None, token_M: Tensor | None) -> None:
        self.half, self._dim, device = half, like.shape[-1], like.device
        self.where = torch.zeros(0, dtype=torch.int32, device=device)
        self.plain_RD = like.new_zeros(0, self._dim)
        self.head_O = None if head_O is None else head_O[:0]
        self.token_M = None if token_M is None else token_M[:0]
        self.blocks = empty_blocks(half, like, head_O, self.token_M, 0)
        self._used_R = torch.zeros(0, dtype=torch.bool, device=device)
        self._used_n = torch.zeros(0, dtype=torch.bool, device=device)

    def sweep(self, tokens: Tensor) -> None:
        """Free all slots and blocks but those of the given tokens."""
        where = self.where[tokens].long()
        self._used_R.zero_()[where[where >= 0]] = True
        self._used_n.zero_()[self.blocks_of(where)] = True

    def blocks_of(self, where_M: Tensor) -> Tensor:
        """Return the blocks of the encoded tokens among some, each once."""
        blocks_n: Tensor = ((-1 - where_M[where_M < 0]) // self.half.block).unique()
        return blocks_n

    def put(self, tokens: Tensor, x_MD: Tensor, known_M: Tensor | None) -> None:
        """Hold new tokens in plain slots; `known_M` is what encoding needs to know of each, 0 if None."""
        self.where = grown(self.where, int(tokens.max()) + 1 if len(tokens) else 0)
        if self.token_M is not None:
            self.token_M = grown(self.token_M, len(self.where))
            self.token_M[tokens] = 0 if known_M is None else known_M
        slots, self._used_R = take(self._used_R, len(tokens))
        self.plain_RD = grown(self.plain_RD, len(self._used_R))
        self.plain_RD[slots] = x_MD
        self.where[tokens] = slots.int()

    def encode(self, tokens: Tensor, age_M: Tensor, segment_M: Tensor, owner_M: Tensor) -> None:
        """Encode plain tokens of whole blocks of arrivals, of which some may have left."""
        if not len(tokens):
            return
        size = self.half.block
        key_M = segment_M * (int(age_M.max()) // size + 1) + age_M // size
        _, block_M = key_M.unique(return_inverse=True)
        count = int(block_M.max()) + 1
        first_n = torch.full((count,), len(tokens), device=tokens.device)
        first_n = first_n.scatter_reduce_(0, block_M, torch.arange(len(tokens), device=tokens.device), "amin")
        member_nb = first_n[:, None].repeat(1, size)
        member_nb[block_M, age_M % size] = torch.arange(len(tokens), device=tokens.device)
        slot_M = self.where[tokens].long()
        head_n = None if self.head_O is None else self.head_O[owner_M[first_n]]
        known_nb = None if self.token_M is None else self.token_M[tokens[member_nb]]
        encoded = store_answers.encode(self.half, self.plain_RD[slot_M[member_nb]], head_n, known_nb)
        at_n, self._used_n = take(self._used_n, count)
        count = len(self._used_n)
        self.blocks = tuple(x.grown(count) if isinstance(x, RowBuffer) else grown(x, count) for x in self.blocks)
        for buffer, x in zip(self.blocks, store_answers.alike(self.half, encoded, self.blocks), strict=True):
            buffer[at_n] = x  # type: ignore[assignment]  # rows go to rows
        self._used_R[slot_M] = False
        self.where[tokens] = (-1 - (at_n[block_M] * size + age_M % size)).int()

    def trim(self) -> None:
        """Give back plain slots that are not in use, if they are many: those of tokens that are encoded now."""
        used_R = self._used_R
        count = int(used_R.sum())
        if len(used_R) <= count + count // 8:
            return
        to_R = (used_R.cumsum(0) - 1).int()
        plain = self.where >= 0  # numbers that no token has may lead anywhere
        self.where[plain] = to_R[self.where[plain].long()].clamp_(min=0)
        self.plain_RD, self._used_R = self.plain_RD[used_R], used_R.new_ones(count)

    def read(self, tokens: Tensor, owner_M: Tensor) -> Tensor:
        """Return tokens, decoded: [M, D]."""
        where_M, size = self.where[tokens].long(), self.half.block
        x_MD = self.plain_RD.new_empty(len(tokens), self._dim)
        plain = where_M >= 0
        x_MD[plain] = self.plain_RD[where_M[plain]]
        if not bool(plain.all()):
            place = -1 - where_M[~plain]
            blocks, inverse = (place // size).unique(return_inverse=True)
            owner_n = owner_M.new_zeros(len(blocks)).scatter_(0, inverse, owner_M[~plain])
            head_n = None if self.head_O is None else self.head_O[owner_n]
            encoded = tuple(x[blocks] for x in self.blocks)
            x_nbD = store_answers.decode(self.half, encoded, head_n, len(blocks), self._dim)
            x_MD[~plain] = x_nbD[inverse, place % size].to(x_MD.dtype)
        return x_MD

    def used_bytes(self, tokens: Tensor) -> int:
        """Return the bytes of tokens: whole blocks, as published, and plain slots."""
        where = self.where[tokens].long()
        blocks = self.blocks_of(where)
        plain = int((where >= 0).sum()) * self._dim * self.plain_RD.itemsize
        return plain + (self.half.nbytes(tuple(x[blocks] for x in self.blocks)) if len(blocks) else 0)

    def side_bytes(self) -> int:
        """Return the bytes of what encoding needs to know of one KV head."""
        return 0 if self.head_O is None else self.head_O[:1].nbytes

    def nbytes(self) -> int:
        """Return the bytes that are allocated."""
        tensors = (self.where, self.plain_RD, self.head_O, self.token_M, *self.blocks)
        return sum(x.nbytes for x in tensors if x is not None)


def grown(x: Tensor, count: int) -> Tensor:
    """Return a tensor with at least `count` rows, the first of which are those of `x`."""
    if len(x) >= count:
        return x
    grown = x.new_zeros(count, *x.shape[1:])
    grown[: len(x)] = x
    return grown


def take(used: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return `count` places that are not in use, and which places are in use then. There may be more places after."""
    free = (~used).nonzero().flatten()[:count]
    if len(free) < count:
        first = len(used)
        used = grown(used, first + max(count - len(free), first // 8))
        free = torch.cat([free, torch.arange(first, first + count - len(free), device=used.device)])
    used[free] = True
    return free, used
