"""Rows that evict while decoding: as plain segments of the arena, against the masked cache.

Shape suffixes: U KV heads, G query heads per KV head, T tokens, C slots, D head dimension.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvbench.cache.base import Entry
from kvbench.cache.handed_on import hand_on
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.decode.accumulate import AccumulateAndEvict
from kvbench.methods.decode.cam import MergeIntoNext
from kvbench.methods.decoding import DecodePolicy, Decoding
from kvbench.methods.sharing import Leaving, Shares
from kvbench.methods.slots import Slots
from kvbench_kernels import backends
from kvbench_kernels.backends import Buffers
from tests.helpers.both_caches import check_steps
from tests.helpers.margins import margins

DIM = 16


class Growing(DecodePolicy):
    """A policy with a schedule: it holds three tokens more than its share, and another one every second step."""

    reads: ClassVar[str] = "last"

    def limit(self, base_BU: Tensor, steps_B1: Tensor, layer: int, span_B1: Tensor) -> Tensor:
        return base_BU + 3 + steps_B1 // 2

    def observe(self, slots: Slots, weights_BUGTC: Tensor) -> None:
        slots.state_BUC = slots.over_heads(weights_BUGTC[:, :, :, -1].mean(2))  # not in place: the cache must cope

    def drop(self, slots: Slots) -> Tensor:
        return slots.state_BUC


class Scattered(DecodePolicy):
    """A policy without a limit: in each head other tokens leave, and another number of them."""

    def limit(self, base_BU: Tensor, steps_B1: Tensor, layer: int, span_B1: Tensor) -> None:
        return None

    def drop(self, slots: Slots) -> Tensor:
        head_U1 = torch.arange(slots.pos_BUC.shape[1])[:, None]
        return ((slots.pos_BUC + slots.seen_B[:, None, None]) % (3 + head_U1) == 0) & ~slots.recent(4)


POLICIES: list[DecodePolicy] = [
    AccumulateAndEvict(window=0.5),
    AccumulateAndEvict(window=2, reduce="max"),
    Growing(),
    Scattered(),
]


@pytest.mark.parametrize("kind", [RaggedCache, MaskedCache])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_a_copy_of_a_row_goes_on_as_the_row_would(
    policy: DecodePolicy, kind: type[RaggedCache] | type[MaskedCache]
) -> None:
    """A row, and another one with the same tokens, which is not copied, but takes the copy's tokens afterwards."""
    g = torch.Generator().manual_seed(8)
    k_UTD, v_UTD = (torch.randn(2, 20, DIM, generator=g) for _ in range(2))
    cache = kind(1)
    rows = [entry for entry in entries(policy, g, 2, 20, reserve=9) if entry.decoding is not None]
    cache.add(0, [replace(e, row=e.row + other) for e in rows for other in (0, 10)], k_UTD, v_UTD)
    originals, twins, copies = ([e.row + other for e in rows] for other in (0, 10, 20))

    def attend(active: list[int], new: int, as_for: int) -> Tensor:
        """Attend with the same tokens for the last `as_for` rows as for as many rows before them."""
        q, k, v = (torch.randn(len(active) - as_for, heads, new, DIM, generator=g) for heads in (4, 2, 2))
        return cache.attend(0, active, *(torch.cat([x, x[len(x) - as_for :]]) for x in (q, k, v)), 0.3)

    for new in (1, 3, 1):
        attend([*originals, *twins], new, as_for=len(rows))
    for row, copy in zip(originals, copies, strict=True):
        cache.fork(0, row, [copy, copy + 10])
    for new in (1, 1, 4, 1, 30, 1, 1):
        of_twins, of_copies = attend([*originals, *twins, *copies], new, as_for=len(rows)).split([8, 4])
        torch.testing.assert_close(of_copies, of_twins[4:], rtol=1e-5, atol=1e-5)
        for twin, copy in zip(twins, copies, strict=True):
            assert (cache.lengths(copy), cache.peak(copy)) == (cache.lengths(twin), cache.peak(twin))


def entries(policy: DecodePolicy, generator: torch.Generator, heads: int, tokens: int, reserve: int) -> list[Entry]:
    """Return a plain row and rows of one policy with other dials and shares, every second one with its whole prompt."""
    dials = [(0, 0), (2, 0), (5, 3), (0, 0)] if not isinstance(policy, Scattered) else [(0, 0), (0, 3), (0, 4), (0, 0)]
    rows = [Entry(0, torch.ones(heads, tokens).bool(), reserve)]
    for row, (buffer, interval) in enumerate(dials, 1):
        keep_UT = torch.rand(heads, tokens, generator=generator) < 0.6
        keep_UT[:, -1] = True
        base = [int(n) for n in keep_UT.sum(1)]
        whole = row % 2 == 0
        rows.append(
            Entry(
                row,
                torch.ones_like(keep_UT) if whole else keep_UT,
                reserve,
                decoding=Decoding(policy, interval=interval, buffer=buffer),
                score_UT=torch.rand(heads, tokens, generator=generator),
                base_U=base,
            )
        )
    return rows


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 40),
    reserve=st.integers(0, 30),
    steps=st.lists(st.sampled_from([1, 1, 1, 2, 40]), min_size=1, max_size=9),
)
def test_policies_agree_with_the_masked_cache(
    policy: DecodePolicy, seed: int, heads: int, tokens: int, reserve: int, steps: list[int]
) -> None:
    """Rows of one policy with different dials, next to a plain row; rows leave, and long questions come at once."""
    with margins(policy) as near:
        agree(policy, seed, heads, tokens, reserve, steps, near)


def agree(
    policy: DecodePolicy, seed: int, heads: int, tokens: int, reserve: int, steps: list[int], near: list[float]
) -> None:
    """Compare both caches up to a step with a decision that float32 may take either way."""
    g = torch.Generator().manual_seed(seed)
    k_UTD, v_UTD = (torch.randn(heads, tokens, DIM, generator=g) for _ in range(2))
    rows = entries(policy, g, heads, tokens, reserve)
    ragged, masked = RaggedCache(1), MaskedCache(1)
    for cache in (ragged, masked):
        cache.add(0, rows, k_UTD, v_UTD)
    check_steps(ragged, masked, g, k_UTD.shape, steps, near, leaves=3, tolerance=1e-5)


def test_a_policy_keeps_to_its_limit_and_its_buffers_shrink_again() -> None:
    g = torch.Generator().manual_seed(3)
    cache = RaggedCache(1)
    score_UT = torch.rand(2, 30, generator=g)
    keep_UT = torch.zeros(2, 30, dtype=torch.bool)
    keep_UT[:, -10:] = True
    entry = Entry(0, keep_UT, 150, decoding=Decoding(AccumulateAndEvict()), score_UT=score_UT, base_U=[10, 10])
    cache.add(0, [entry], *torch.randn(2, 2, 30, DIM, generator=g).unbind())
    before = cache.bytes()
    assert before <= 2 * 16 * (2 * DIM * 4 + 8), "the reserve of a row at its limit is one token"
    for new in (1, 5, 1, 1, 100, 1):
        q, k = torch.randn(1, 4, new, DIM, generator=g), torch.randn(1, 2, new, DIM, generator=g)
        cache.attend(0, [0], q, k, k, 1.0)
        assert cache.lengths(0) == [[10, 10]] and cache.peak(0) == 10
        assert cache.bytes() <= before + 2 * 8 * (2 * DIM * 4 + 8)


@pytest.mark.parametrize("shares", [[10, 10], [6, 12]])
def test_a_policy_that_holds_more_than_its_share_loses_no_token(shares: list[int]) -> None:
    """After a long question a row must not be cut to the budget: its newest tokens would be lost."""
    g = torch.Generator().manual_seed(5)
    k_UTD, v_UTD = (torch.randn(2, 30, DIM, generator=g) for _ in range(2))
    keep_UT = torch.arange(30) >= 30 - torch.tensor(shares)[:, None]
    entry = Entry(0, keep_UT, 4, decoding=Decoding(Growing()), score_UT=torch.rand(2, 30, generator=g), base_U=shares)
    ragged, masked = RaggedCache(1), MaskedCache(1)
    for cache in (ragged, masked):
        cache.add(0, [entry], k_UTD, v_UTD)
    for new in (1, 20, 1, 1, 9, 1):
        q, k, v = (torch.randn(1, heads, new, DIM, generator=g) for heads in (4, 2, 2))
        outs = [cache.attend(0, [0], q, k, v, 0.3) for cache in (ragged, masked)]
        torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-5)
        assert ragged.lengths(0) == masked.lengths(0)
    assert ragged.lengths(0) == [[share + 3 + 33 // 2 for share in shares]]


def test_a_question_whose_attention_is_large_is_observed_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    outs = []
    for at_once in (2**26, 1):
        monkeypatch.setattr("kvbench.cache.observer.AT_ONCE", at_once)
        g = torch.Generator().manual_seed(1)
        cache = RaggedCache(1)
        cache.add(0, entries(POLICIES[0], g, 2, 30, 40), *torch.randn(2, 2, 30, DIM, generator=g).unbind())
        for new in (1, 20, 1):
            q, k = (torch.randn(5, heads, new, DIM, generator=g) for heads in (4, 2))
            out = cache.attend(0, range(5), q, k, k, 0.3)
        outs.append((out, [cache.lengths(row) for row in range(5)]))
    assert torch.equal(outs[0][0], outs[1][0]) and outs[0][1] == outs[1][1]


class Drifting(DecodePolicy):
    """A policy whose limit is not the same on the host and on the device."""

    def __init__(self) -> None:
        self.calls = 0

    def limit(self, base_BU: Tensor, steps_B1: Tensor, layer: int, span_B1: Tensor) -> Tensor:
        self.calls += 1
        return base_BU + self.calls

    def drop(self, slots: Slots) -> Tensor:
        return slots.pos_BUC.float()


def test_a_limit_that_differs_between_host_and_device_is_an_error() -> None:
    cache = RaggedCache(1)
    keep_UT = torch.ones(1, 9).bool()
    cache.add(0, [Entry(0, keep_UT, 9, decoding=Decoding(Drifting()), base_U=[9])], *torch.randn(2, 1, 9, DIM).unbind())
    for _ in range(3):
        cache.attend(0, [0], *torch.randn(3, 1, 1, 1, DIM).unbind(), 1.0)
    with pytest.raises(RuntimeError, match="Drifting: its limit differs between host and device"):
        cache.release([0])


def test_policies_that_step_together_act_as_each_would_alone() -> None:
    """One drops a token in each step, one merges it, one holds back several, one has a schedule, one has no limit."""
    g = torch.Generator().manual_seed(11)
    decodings = [
        Decoding(POLICIES[0]),
        Decoding(MergeIntoNext(merge_budget=3)),
        Decoding(POLICIES[1], buffer=3),
        Decoding(Growing()),
        Decoding(Scattered(), interval=3),
    ]
    k_UTD, v_UTD = (torch.randn(2, 24, DIM, generator=g) for _ in range(2))
    rows = []
    for row, decoding in enumerate(decodings):
        shares = [6 + row, 12 - row]
        keep_UT = torch.arange(24) >= 24 - torch.tensor(shares)[:, None]
        scores_UT = torch.rand(2, 24, generator=g)
        rows.append(Entry(row, keep_UT, 14, decoding=decoding, score_UT=scores_UT, base_U=shares))
    together, alone = RaggedCache(1), [RaggedCache(1) for _ in rows]
    together.add(0, rows, k_UTD, v_UTD)
    for cache, entry in zip(alone, rows, strict=True):
        cache.add(0, [entry], k_UTD, v_UTD)
    for new in (1, 1, 5, 1, 1, 1, 1, 1, 1):
        q, k, v = (torch.randn(len(rows), heads, new, DIM, generator=g) for heads in (4, 2, 2))
        out = together.attend(0, range(len(rows)), q, k, v, 0.3)
        for i, cache in enumerate(alone):
            own = slice(i, i + 1)
            torch.testing.assert_close(cache.attend(0, [i], q[own], k[own], v[own], 0.3), out[own])
            assert cache.lengths(i) == together.lengths(i) and cache.peak(i) == together.peak(i)


@pytest.mark.gxx
def test_values_are_handed_on_by_torch_and_by_compiled_code_bit_for_bit() -> None:
    g = torch.Generator().manual_seed(2)
    host = backends.make_backend("cpu").host
    for dim, takers in ((16, 1), (80, 5)):
        start_BU = torch.tensor([[40, 0], [20, 60]])
        column_BUN = torch.randint(20, (2, 2, 1), generator=g)
        due_BUN = torch.tensor([[True, True], [False, True]])[..., None]
        into_BUNM = torch.stack([torch.randperm(20, generator=g)[:takers] for _ in range(4)]).view(2, 2, 1, takers)
        into_BUNM = torch.where(into_BUNM == column_BUN[..., None], (into_BUNM + 1) % 20, into_BUNM)
        share_BUNM = torch.rand(2, 2, 1, takers, generator=g) * (torch.rand(2, 2, 1, takers, generator=g) < 0.7)
        leaving = Leaving(column_BUN, due_BUN, torch.ones(2, 2, 20).bool())
        k_RD, v_RD = torch.randn(2, 80, dim, generator=g).unbind()
        results = []
        for functions in (None, host):
            buffers = Buffers(k_RD.clone(), v_RD.clone(), torch.zeros(1).int(), torch.zeros(0).int(), 20)
            hand_on(Shares(into_BUNM, share_BUNM, share_BUNM / 3), leaving, buffers, start_BU, functions)
            results.append((buffers.k_RD, buffers.v_RD))
        assert all(map(torch.equal, *results))
        assert not torch.equal(results[0][0], k_RD) and not torch.equal(results[0][1], v_RD)
