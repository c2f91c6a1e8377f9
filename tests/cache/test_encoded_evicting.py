"""Rows that are encoded by a storage part and evict while decoding: the ragged cache against the masked one.

Shape suffixes: U KV heads, T tokens, D head dimension.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.cache.base import Entry
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.context import LayerContext
from kvbench.methods.decode.accumulate import AccumulateAndEvict
from kvbench.methods.decode.long_minor import DropLongMinor
from kvbench.methods.decode.slide import SlidingWindow
from kvbench.methods.decoding import DecodePolicy, Decoding
from kvbench.methods.storage import Half, Side, Store
from kvbench.methods.store.kivi import Kivi
from kvbench.methods.store.qaq import Qaq
from kvbench.methods.store.think import Think
from tests.helpers.both_caches import check_steps
from tests.helpers.margins import margins

DIM = 16
POLICIES: list[DecodePolicy] = [AccumulateAndEvict(window=0.5), SlidingWindow(2), DropLongMinor(3, 2)]
STORES: list[Store] = [Kivi(2, 4, 8), Kivi(4, 16, 16), Think(0.3, 4, 3)]


def entries(store: Store, policy: DecodePolicy, g: torch.Generator, heads: int, tokens: int) -> list[Entry]:
    """Return a plain row, an encoded one, a row that evicts, and rows that do both."""
    rows = []
    for row in range(5):
        keep_UT = torch.rand(heads, tokens, generator=g) < 0.7
        keep_UT[:, -1] = True
        channels = torch.stack([torch.randperm(DIM, generator=g)[:12].sort().values for _ in range(heads)])
        side = (Side(channels), Side()) if isinstance(store, Think) else (Side(), Side())
        evicts = row >= 2
        rows.append(
            Entry(
                row,
                keep_UT,
                4,
                store=store if row not in (0, 2) else None,
                side=side,
                decoding=Decoding(policy) if evicts else None,
                score_UT=torch.rand(heads, tokens, generator=g) * 9 if evicts else None,
                base_U=[max(3, int(n) // (row - 1)) for n in keep_UT.sum(1)] if evicts else None,
            )
        )
    return rows


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("store", STORES, ids=str)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 50),
    steps=st.lists(st.sampled_from([1, 1, 1, 1, 3, 30]), min_size=1, max_size=14),
)
def test_ragged_and_masked_agree(
    store: Store, policy: DecodePolicy, seed: int, heads: int, tokens: int, steps: list[int]
) -> None:
    with margins(policy) as near:
        agree(store, policy, seed, heads, tokens, steps, near)


def agree(
    store: Store, policy: DecodePolicy, seed: int, heads: int, tokens: int, steps: list[int], near: list[float]
) -> None:
    """Compare both caches up to a step with a decision that float32 may take either way."""
    g = torch.Generator().manual_seed(seed)
    k_UTD, v_UTD = (torch.randn(heads, tokens, DIM, generator=g) for _ in range(2))
    ragged, masked = RaggedCache(1), MaskedCache(1)
    for cache in (ragged, masked):
        cache.add(0, entries(store, policy, torch.Generator().manual_seed(seed), heads, tokens), k_UTD, v_UTD)
    check_steps(ragged, masked, g, k_UTD.shape, steps, near, leaves=4, tolerance=1e-4)


@pytest.mark.parametrize("store", [Kivi(2, 8, 8), Kivi(2, 8, 32)], ids=str)
def test_bytes_stay_bounded_while_tokens_come_and_go(store: Store) -> None:
    """A sliding window of 64 tokens frees whole blocks. At most one block of a head is partly dead at each end."""
    g, dim = torch.Generator().manual_seed(1), 64
    cache, keep_UT = RaggedCache(1), torch.ones(2, 64, dtype=torch.bool)
    entry = Entry(0, keep_UT, 300, store=store, decoding=Decoding(SlidingWindow(0)), base_U=[64, 64])
    cache.add(0, [entry], *torch.randn(2, 2, 64, dim, generator=g).unbind())
    used, allocated = [], []
    for _ in range(300):
        q, k, v = (torch.randn(1, heads, 1, dim, generator=g) for heads in (4, 2, 2))
        cache.attend(0, [0], q, k, v, 0.1)
        assert cache.lengths(0) == [[64, 64]]
        used.append(cache.used_bytes(0))
        allocated.append(cache.bytes())
    keys, values = (half for half in store.halves if isinstance(half, Half))
    block = sum(x.nbytes for x in keys.encode(torch.zeros(1, 8, dim), None, None))
    token = sum(x.nbytes for x in values.encode(torch.zeros(1, 1, dim), None, None))
    residual = store.residual  # type: ignore[attr-defined]
    most = 2 * ((64 // 8 + 1) * block + residual * dim * 4 + (64 - residual) * token + (residual + 1) * dim * 4)
    assert max(used) <= most
    assert allocated[-1] <= 1.3 * max(allocated[:80]), "freed blocks are used again"


@pytest.mark.parametrize("store", [Kivi(2, 8, 8), Qaq(), Think(recent=8)], ids=str)
def test_a_prompt_leaves_no_plain_slots_of_encoded_tokens(store: Store) -> None:
    """The memory that is allocated is about what a row holds, also after a second row came into its free slots."""
    g, dim = torch.Generator().manual_seed(2), 64
    cache, q_BHTD = RaggedCache(1), torch.randn(1, 4, 1, dim, generator=g)
    for row, tokens in enumerate((400, 300)):
        keep_UT = torch.ones(2, tokens, dtype=torch.bool)
        k_UTD, v_UTD = torch.randn(2, 2, tokens, dim, generator=g).unbind()
        context = LayerContext(torch.randn(4, tokens, dim, generator=g), k_UTD, v_UTD)
        side = store.prepare(context, keep_UT, k_UTD, v_UTD)
        decoding = Decoding(SlidingWindow(0))
        cache.add(0, [Entry(row, keep_UT, 5, store, decoding, base_U=[tokens] * 2, side=side)], k_UTD, v_UTD)
        assert cache.bytes() <= 1.15 * sum(map(cache.held_bytes, range(row + 1)))
        out_BHTD = cache.attend(0, [row], q_BHTD, k_UTD[None, :, :1], v_UTD[None, :, :1], 0.1)
        masked = MaskedCache(1)
        masked.add(0, [Entry(row, keep_UT, 5, store, decoding, base_U=[tokens] * 2, side=side)], k_UTD, v_UTD)
        expected = masked.attend(0, [row], q_BHTD, k_UTD[None, :, :1], v_UTD[None, :, :1], 0.1)
        torch.testing.assert_close(out_BHTD, expected, rtol=1e-4, atol=1e-4)
