"""Rows with encoded storage.

Shape suffixes: U KV heads, T tokens.
"""

from __future__ import annotations

import torch

from kvbench.cache.base import Entry
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.store.kivi import Kivi


def test_encoded_rows_take_fewer_bytes() -> None:
    """KIVI at 2 bits and D = 64 takes 16 bytes of codes and 16 of scale and minimum per token, instead of 256."""
    tokens = 1024
    cache = RaggedCache(1)
    keep_UT = torch.ones(2, tokens, dtype=torch.bool)
    cache.add(0, [Entry(0, keep_UT, 0, store=Kivi(2, 32, 128))], *torch.randn(2, 2, tokens, 64).unbind())
    keys = tokens * (16 + 16)
    values = (tokens - 128) * (16 + 16) + 128 * 256
    assert cache.used_bytes(0) == 2 * (keys + values) == cache.bytes()
    assert cache.lengths(0) == [[tokens, tokens]]
