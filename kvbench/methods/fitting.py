"""The search for the tokens that a budget in bytes allows: keys, values, and what a policy knows of each token.

Shape suffixes: U KV heads, T tokens of the compressed span.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from kvbench.methods.budgets import Allowance, ByteShare
from kvbench.methods.context import LayerContext
from kvbench.methods.decoding import Decoding
from kvbench.methods.eviction import Eviction
from kvbench.methods.storage import NUMBER_BYTES, Half, Store

PLACES = 32  # budgets that are tried first where every try asks the scores of all heads
_CLOSE = 0.995  # share of the promise from which on no better budget is looked for


class CacheShape(NamedTuple):
    """Sizes of the layers that are compressed."""

    layers: int
    heads: int
    query_heads: int
    dim: int
    dtype: torch.dtype

    @property
    def segments(self) -> int:
        """KV heads of all layers."""
        return self.layers * self.heads

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's key and value in one head of a plain cache."""
        return 2 * self.dim * self.dtype.itemsize


def promised_bytes(budget: ByteShare, span: int, shape: CacheShape) -> int:
    """Return the bytes that a budget allows on a prompt of `span` tokens."""
    return int(budget.share * span * shape.segments * shape.token_bytes + 1e-6)


def state_bytes(store: Store | None, decoding: Decoding | None, dim: int, dtype: torch.dtype) -> int:
    """Return the bytes that a token takes in addition to its key and value.

    Args:
        decoding: what leaves while generating; None if nothing does.
    """
    own = 0 if decoding is None else decoding.token_bytes(dim, dtype)
    if decoding is None or store is None:
        return own
    return own + NUMBER_BYTES + sum(half.token_bytes(dtype) for half in store.halves if half is not None)


@lru_cache(256)
def head_bytes(store: Store | None, state: int, span: int, dim: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Return the bytes of one KV head that keeps 0, 1, ..., `span` tokens of a prompt.

    Args:
        store: the form in which tokens are held; None for plain ones.
        state: further bytes of each token; see `state_bytes`.
    """
    table = [state * n for n in range(span + 1)]
    for half in (None, None) if store is None else store.halves:
        block = 0 if half is None else half.block_bytes(dim, dtype)
        for n in range(span + 1):
            table[n] += half_bytes(half, n, dim, dtype, block)
    return tuple(table)


def half_bytes(half: Half | None, n: int, dim: int, dtype: torch.dtype, block: int) -> int:
    """Return the bytes of the keys, or the values, of `n` tokens of a prompt; `block` are those of an encoded block."""
    if half is None:
        return n * dim * dtype.itemsize
    encoded = half.encoded(n, n)
    return (n - encoded) * dim * dtype.itemsize + half.side_bytes(dim) + encoded // half.block * block


def even(table: Sequence[int], promise: int, shape: CacheShape) -> Allowance:
    """Return the most tokens that fit if all heads keep the same number."""
    fitting = (n for n in range(len(table) - 1, 0, -1) if table[n] * shape.segments <= promise)
    return Allowance(next(fitting, 0))


class Search(NamedTuple):
    """A search for the most tokens whose bytes fit.

    Attributes:
        promise: bytes that may be used.
        segments: KV heads of all layers.
        least: smallest budget that leaves the method a choice.
        most: largest budget to try.
    """

    promise: int
    segments: int
    least: int
    most: int

    def largest(self, bytes_of: Callable[[Allowance], int], places: int | None = None) -> Allowance | None:
        """Return the largest budget that fits; None if none does.

        It is looked for from above, because bytes may fall where another block of tokens is full.

        Args:
            bytes_of: returns the bytes of a budget.
            places: budgets to try before the search is narrowed down; by default every number of tokens per head.
        """
        step = 1 if places is None else max(1, (self.most - self.least) // places)
        tokens = self.most
        while bytes_of(Allowance(tokens)) > self.promise:
            if tokens == self.least:
                return None
            tokens = max(self.least, tokens - step)
        if tokens == self.most:
            return Allowance(tokens)
        fits, fails = tokens * self.segments, min(tokens + step, self.most) * self.segments
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if bytes_of(self._allowed(middle)) <= self.promise:
                fits = middle
            else:
                fails = middle
        return self._near(bytes_of, fits)

    def _near(self, bytes_of: Callable[[Allowance], int], fits: int) -> Allowance:
        """Return the budget with the most bytes among those just above one that fits.

        With few heads, a head that no longer fills a block may cost more than all that the budget has left.
        """
        best, best_bytes = fits, bytes_of(self._allowed(fits))
        for total in range(fits + 1, min(fits + self.segments, self.most * self.segments) + 1):
            if best_bytes >= _CLOSE * self.promise:
                break
            needed = bytes_of(self._allowed(total))
            if best_bytes < needed <= self.promise:
                best, best_bytes = total, needed
        return self._allowed(best)

    def _allowed(self, total: int) -> Allowance:
        return Allowance(*divmod(total, self.segments))


def highest(table: Sequence[int], promise: int, shape: CacheShape) -> int:
    """Return a budget that no split over the heads can exceed: that of the smallest bytes per token."""
    least = min(total / n for n, total in enumerate(table) if n)
    return min(len(table) - 1, int(promise / least / shape.segments) + 1)


def numbers_bytes(table: Sequence[int], eviction: Eviction, allowed: Allowance, shape: CacheShape) -> int:
    """Return the bytes of a budget whose split over the heads depends on numbers alone."""
    span = len(table) - 1
    if allowed.tokens >= span:
        return shape.segments * table[span]
    budget = eviction.budget(
        allowed.tokens, span=span, layers=shape.layers, heads=shape.heads, query_heads=shape.query_heads
    )
    totals = eviction.layer_totals(budget, allowed.extra)
    return sum(table[n] for layer, total in enumerate(totals) for n in eviction.head_tokens(layer, total, budget))


def kept_bytes(
    table: Sequence[int] | Mapping[int, int],
    store: Store,
    ctx: LayerContext,
    keep_UT: Tensor,
    k_UTD: Tensor,
    v_UTD: Tensor,
) -> int:
    """Return the bytes of the kept tokens of a layer, with the bytes of their own of blocks that differ."""
    kept = keep_UT.sum(1).tolist()
    size = sum(table[n] for n in kept)  # as if every block had the most bytes
    for half, x_UTD in zip(store.halves, (k_UTD, v_UTD), strict=True):
        if half is not None and half.varies:
            less_UT = half.block_bytes(x_UTD.shape[-1], x_UTD.dtype) - half.sizes(ctx, x_UTD)
            size -= _sum_of_first(less_UT, keep_UT, [half.encoded(n, n) for n in kept])
    return int(size)


def _sum_of_first(x_UT: Tensor, keep_UT: Tensor, end_U: Sequence[int]) -> int:
    """Return the sum over the first kept tokens of every head, `end_U` of each."""
    first_UT = keep_UT & (keep_UT.cumsum(1) <= torch.tensor(end_U, device=keep_UT.device)[:, None])
    return int(x_UT[first_UT].sum())
