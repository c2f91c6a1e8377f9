"""Rows held by a storage part: blocks of any rows and KV heads, decoded first or attended to as they are.

Shape suffixes: U KV heads, T tokens, N blocks, B tokens of a block, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvbench.cache.base import Entry
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.context import LayerContext
from kvbench.methods.storage import Encoded, Half, Side, Store
from kvbench.methods.store.kivi import Kivi
from kvbench.methods.store.think import ThinkKeys
from kvbench_kernels import backends
from kvbench_kernels.backends.cuda import CudaBackend

KERNELS = ("torch", "cpu")


@dataclass(frozen=True)
class ScaledPairs(Half):
    """Pairs of tokens, divided by a number of their head and multiplied by one of each token."""

    @property
    def block(self) -> int:
        return 2

    def encoded(self, n: int, kept: int) -> int:
        return max(0, n - 3) // 2 * 2

    def prepare(self, ctx: LayerContext, keep_UT: Tensor, x_UTD: Tensor) -> Side:
        return Side(*scales(*x_UTD.shape[:2]))

    def encode(self, x_NBD: Tensor, head_N: Tensor | None, token_NB: Tensor | None) -> Encoded:
        assert head_N is not None and token_NB is not None
        return x_NBD / head_N[:, None, None], token_NB

    def decode(self, encoded: Encoded, head_N: Tensor | None, dim: int) -> Tensor:
        assert head_N is not None
        x_NBD, token_NB = encoded
        return x_NBD * head_N[:, None, None] * (1 + token_NB[..., None])


def scales(heads: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Return a number for each head and for each token of a prompt; none of them is 0."""
    return 2 + torch.arange(heads).float(), 0.1 + torch.rand(heads, tokens, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Pairs(Store):
    """Keys and values that need to know their head and each token."""

    @property
    def keys(self) -> Half:
        return ScaledPairs()

    @property
    def values(self) -> Half:
        return ScaledPairs()


@dataclass(frozen=True)
class ValuesAlone(Store):
    """Plain keys, and values as KIVI holds them."""

    @property
    def values(self) -> Half:
        return Kivi(4, 16, 16).values


THINNED = Kivi(2, 32, 64, channels=ThinkKeys(0.4, 4)), Kivi(4, 16, 16, channels=ThinkKeys(0.9, 4))
STORES = (
    *(Kivi(2, 32, 32), Kivi(4, 16, 48), Kivi(8, 32, 32), Kivi(2, 4, 8), Kivi(4, 96, 96), Pairs(), ValuesAlone()),
    *THINNED,
)


def entries_of(
    store: Store,
    first: int,
    rows: int,
    heads: int,
    tokens: int,
    reserve: int,
    generator: torch.Generator,
    dim: int = 96,
) -> list[Entry]:
    """Return entries with a different mask per head; a head may keep nothing."""
    sides: tuple[Side, ...] = (Side(*scales(heads, tokens)),) * 2 if isinstance(store, Pairs) else (Side(), Side())
    if store in THINNED:  # each head has channels of its own
        drawn = torch.rand(heads, dim, generator=generator).argsort(1)[:, : store.keys.channels.stay(dim)]  # type: ignore[union-attr]
        sides = Side(drawn.sort(1).values.short()), Side()
    return [
        Entry(
            row,
            torch.rand(heads, tokens, generator=generator) < torch.rand(heads, 1, generator=generator),
            reserve,
            store=store,
            side=sides,
        )
        for row in range(first, first + rows)
    ]


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    store=st.sampled_from(STORES),
    rows=st.integers(1, 4),
    heads=st.integers(1, 3),
    group=st.integers(1, 5),
    tokens=st.integers(1, 300),
    reserve=st.integers(0, 4),
    steps=st.lists(st.sampled_from([1, 1, 1, 2, 7, 40]), min_size=1, max_size=6),
)
def test_ragged_and_masked_agree(
    kernel: str, seed: int, store: Store, rows: int, heads: int, group: int, tokens: int, reserve: int, steps: list[int]
) -> None:
    """Both caches agree for any mask, beyond the reserve, and when rows leave and others join between steps."""
    g, dim = torch.Generator().manual_seed(seed), 96
    caches = RaggedCache(1, backends.make_backend(kernel)), MaskedCache(1)
    active: list[int] = []

    def join(first: int, count: int) -> None:
        k_UTD, v_UTD = (torch.randn(heads, tokens, dim, generator=g) for _ in range(2))
        entries = entries_of(store, first, count, heads, tokens, reserve, g)
        for cache in caches:
            cache.add(0, entries, k_UTD, v_UTD)
        active.extend(range(first, first + count))

    join(0, rows)
    for step, new in enumerate(steps):
        q = torch.randn(len(active), heads * group, new, dim, generator=g)
        k, v = (torch.randn(len(active), heads, new, dim, generator=g) for _ in range(2))
        outs = [cache.attend(0, active, q, k, v, 0.1) for cache in caches]
        torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-4)
        ragged = caches[0]
        assert [ragged.lengths(row) for row in active] == [caches[1].lengths(row) for row in active]
        assert ragged.bytes() >= sum(ragged.used_bytes(row) + ragged.slack_bytes(row) for row in active)
        if step == 1:
            for cache in caches:
                cache.release([active[0]])
            active.pop(0)
            join(100, 1)
    for cache in caches:
        cache.release(active)
    assert caches[0].bytes() == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_is_the_same_alone_and_in_a_batch(kernel: str) -> None:
    g = torch.Generator().manual_seed(2)
    k_UTD, v_UTD = (torch.randn(2, 333, 64, generator=g) for _ in range(2))
    entries = entries_of(Kivi(2, 32, 64), 0, 5, 2, 333, 8, g)
    together, alone = (RaggedCache(1, backends.make_backend(kernel)) for _ in range(2))
    together.add(0, entries, k_UTD, v_UTD)
    alone.add(0, entries[3:4], k_UTD, v_UTD)
    for _ in range(5):
        q, k, v = (torch.randn(5, heads, 1, 64, generator=g) for heads in (6, 2, 2))
        batch = together.attend(0, list(range(5)), q, k, v, 0.125)[3]
        torch.testing.assert_close(batch, alone.attend(0, [3], q[3:4], k[3:4], v[3:4], 0.125)[0], rtol=1e-5, atol=1e-5)
        if kernel == "cpu":
            assert torch.equal(
                together.attend(0, [3], q[3:4], k[3:4], v[3:4], 0.125),
                alone.attend(0, [3], q[3:4], k[3:4], v[3:4], 0.125),
            )


def test_keys_and_values_that_no_part_encodes_are_exact() -> None:
    g = torch.Generator().manual_seed(4)
    k_UTD, v_UTD = (torch.randn(2, 50, 32, generator=g) for _ in range(2))
    keep_UT = torch.rand(2, 50, generator=g) < 0.5

    @dataclass(frozen=True)
    class Nothing(Store):
        """A storage part that encodes nothing."""

    caches = RaggedCache(1, backends.make_backend("cpu")), RaggedCache(1, backends.make_backend("cpu"))
    caches[0].add(0, [Entry(0, keep_UT, 3, store=Nothing())], k_UTD, v_UTD)
    caches[1].add(0, [Entry(0, keep_UT, 3)], k_UTD, v_UTD)
    q, k, v = (torch.randn(1, heads, 1, 32, generator=g) for heads in (4, 2, 2))
    outs = [cache.attend(0, [0], q, k, v, 0.2) for cache in caches]
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-6, atol=1e-6)
    assert caches[0].used_bytes(0) == caches[1].used_bytes(0)


@pytest.mark.parametrize("store", [Kivi(2, 32, 64), Kivi(4, 16, 16), ValuesAlone(), *THINNED], ids=str)
def test_the_op_for_gpus_attends_to_packed_rows(store: Store) -> None:
    """On a CPU the op runs in torch. It reads the same blocks and plain slots as decoding first does."""
    g = torch.Generator().manual_seed(6)
    k_UTD, v_UTD = (torch.randn(2, 300, 64, generator=g).bfloat16() for _ in range(2))
    entries = entries_of(store, 0, 3, 2, 300, 9, g, dim=64)
    packed, decoded = RaggedCache(1, CudaBackend()), RaggedCache(1, backends.make_backend("torch"))
    for cache in (packed, decoded):
        cache.add(0, entries, k_UTD, v_UTD)
    for new in (1, 1, 3, 1, 1, 1):
        q, k, v = (torch.randn(3, heads, new, 64, generator=g).bfloat16() for heads in (6, 2, 2))
        outs = [cache.attend(0, [0, 1, 2], q, k, v, 0.125) for cache in (packed, decoded)]
        torch.testing.assert_close(outs[0], outs[1], rtol=3e-2, atol=3e-2)
