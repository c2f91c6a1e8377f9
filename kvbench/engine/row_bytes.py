"""The bytes that a row of a cache takes, before there is a row: upper bounds by arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from kvbench.cache.blocks import plain_if_none, room
from kvbench.cache.local import ring_slots
from kvbench.engine.variant import Variant
from kvbench.methods.allowance import allowed
from kvbench.methods.budgets import ByteShare
from kvbench.methods.composed import Composed
from kvbench.methods.fitting import CacheShape, even, head_bytes, promised_bytes, state_bytes
from kvbench.methods.looking import Look
from kvbench.methods.storage import Half, Store


def row_bytes(variant: Variant, shape: CacheShape, span: int, question: int, new: int, masked: bool = False) -> int:
    """Return the bytes that a row allocates at its fullest, over the layers of `shape`.

    Args:
        span: tokens of the compressed prompt.
        question: tokens between the compressed prompt and the answer.
        new: most tokens of the answer.
        masked: True for the cache that keeps all tokens as they are, and copies a row of a layer to append to it.
    """
    method = variant.method
    kept = span if masked or method.keeps_prompt else kept_tokens(variant, shape, span)
    most = kept + question + new + (0 if method.feed is None else method.feed.chunk)
    if masked or method.store is None:
        state = state_bytes(None, method.decoding, shape.dim, shape.dtype)
        of_head = _with_spare(most) * (shape.token_bytes + state)
        if method.look is not None and not masked:
            of_head += _summary_bytes(method.look, most, shape)
        return shape.segments * of_head
    even = _is_even(method)
    equal = even and not (method.evicts and isinstance(variant.budget, ByteShare))  # of bytes, heads share what is left
    stores = _stores(variant, shape, span)
    if method.decoding is None:
        of_heads = sum(_encoded_bytes(store, kept, most, shape, least=kept if equal else 0) for store in stores)
    else:
        states = [state_bytes(store, method.decoding, shape.dim, shape.dtype) for store in stores]
        of_heads = sum(
            _evicting_bytes(store, state, kept, question, most, shape, least=kept - 1 if even else 0)
            for store, state in zip(stores, states, strict=True)
        )
        largest_head = kept if even else shape.heads * kept
        return shape.heads * of_heads + largest_head * shape.dim * shape.dtype.itemsize  # plain while it is encoded
    return shape.heads * of_heads


def local_row_bytes(shape: CacheShape, window: int, tokens: int) -> int:
    """Return the bytes that a row allocates in the layers of `shape`, which look back `window` tokens.

    Args:
        tokens: of the longest row of its batch: all have as many slots.
    """
    return shape.segments * ring_slots(tokens, window) * shape.token_bytes


def _stores(variant: Variant, shape: CacheShape, span: int) -> Sequence[Store]:
    """Return the store of each layer. Blocks that differ in size have the same upper bound in all forms."""
    method = variant.method
    assert method.store is not None
    chosen = allowed(method, variant.budget, span, shape) if method.fits_forms else None
    return (chosen.stores if chosen is not None else ()) or [method.store] * shape.layers


def kept_tokens(variant: Variant, shape: CacheShape, span: int) -> int:
    """Return the tokens per KV head that a variant keeps of `span`; of bytes, those that equal heads would keep."""
    method, budget = variant.method, variant.budget
    if isinstance(budget, ByteShare):
        if method.promises is None:
            return span
        if method.store is None:
            return math.ceil(budget.share * span)
        state = state_bytes(method.store, method.decoding, shape.dim, shape.dtype)
        table = head_bytes(method.store, state, span, shape.dim, shape.dtype)
        return min(span, even(table, promised_bytes(budget, span, shape), shape).tokens + 1)  # heads get what is left
    tokens = method.tokens(budget, span)
    return span if tokens is None else tokens


def _is_even(method: Composed) -> bool:
    """Return True if every KV head of every layer keeps the same number of tokens, or one more."""
    if method.eviction is None:
        return True
    layers, heads = method.eviction.layers, method.eviction.heads
    return (layers is None or layers.is_even) and (heads is None or heads.is_even)


def _with_spare(tokens: int) -> int:
    """Return the tokens that buffers have room for, which are up to an eighth longer than they must be."""
    return tokens + max(16, tokens // 8)


def _encoded_bytes(store: Store, kept: int, most: int, shape: CacheShape, least: int) -> int:
    """Return the bytes of a KV head that keeps `kept` tokens and grows to `most`.

    Args:
        least: fewest tokens that some head keeps. How many tokens wait for a block to be full depends on their number.
    """
    total = 0
    for half in plain_if_none(store.halves):
        blocks, slots = _room(half, kept, most, least)
        total += blocks * _block_bytes(half, shape) + slots * _slot_bytes(half, shape) + half.side_bytes(shape.dim)
    return total


def _evicting_bytes(
    store: Store, state: int, kept: int, question: int, most: int, shape: CacheShape, least: int
) -> int:
    """Return the bytes of a KV head whose tokens are encoded in blocks and may leave one by one.

    A token has a number, which the arena holds for its key and for its value. A block is free once all of its tokens
    have left.

    Args:
        state: further bytes of each token.
        least: as of `_encoded_bytes`.
    """
    numbers = _with_spare(most)
    total = numbers * state
    for half in plain_if_none(store.halves):
        blocks, slots = _room(half, kept, most, least)
        slots = min(most, slots + question)
        total += (slots + slots // 8 + 1) * shape.dim * shape.dtype.itemsize
        spare = 0 if half.varies else blocks // 8  # `_block_bytes` has that of blocks that differ in size
        total += (blocks + spare + 1) * _block_bytes(half, shape) + half.side_bytes(shape.dim)
    return total


def _room(half: Half, kept: int, most: int, least: int) -> tuple[int, int]:
    """Return the blocks and the plain slots of a KV head that keeps `kept` tokens, of which others keep fewer."""
    blocks, slots = room(half, kept, most)
    return blocks, max([slots, *(n - half.encoded(n, n) for n in range(least, kept))])


def _block_bytes(half: Half, shape: CacheShape) -> int:
    """Return the bytes of an encoded block. The buffer of blocks that differ in size is up to an eighth longer."""
    size = half.block_bytes(shape.dim, shape.dtype)
    return size + size // 8 if half.varies else size


def _slot_bytes(half: Half, shape: CacheShape) -> int:
    """Return the bytes of a token that is not encoded yet, with what its encoding must know of it."""
    return shape.dim * shape.dtype.itemsize + half.token_bytes(shape.dtype)


def _summary_bytes(look: Look, tokens: int, shape: CacheShape) -> int:
    """Return the bytes of the summaries of a KV head's blocks."""
    one_block = torch.zeros(1, look.block, shape.dim, dtype=shape.dtype)
    return tokens // look.block * look.summary(one_block).nbytes
