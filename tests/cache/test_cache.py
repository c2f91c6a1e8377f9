"""The ragged cache against the masked one and against plain attention.

Shape suffixes: B rows, H query heads, U KV heads, T tokens, D head dimension.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvbench.cache.base import Entry, Recordable
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.decode.accumulate import AccumulateAndEvict
from kvbench.methods.decoding import Decoding
from kvbench.methods.store.kivi import Kivi
from kvbench_kernels import backends

DIM = 16
ACTIONS = ["join", "leave", "step", "compact"]
BACKENDS = ["torch", "sdpa", pytest.param("cpu", marks=pytest.mark.gxx)]


def ragged_cache(name: str = "torch") -> RaggedCache:
    """Return a ragged cache of one layer with the backend `name`."""
    spec = backends.AttentionSpec(torch.device("cpu"), torch.float32, DIM, 1)
    unmet = backends.unmet_requirement(name, spec, compile_now=True)
    assert unmet is None, unmet
    return RaggedCache(1, backends.make_backend(name))


def random_entries(
    generator: torch.Generator, rows: int, heads: int, tokens: int, reserve: int, special: bool
) -> list[Entry]:
    """Return entries with a different mask per head; if `special`, some rows encode and some evict while decoding."""
    entries = []
    for row in range(rows):
        keep_UT = torch.rand(heads, tokens, generator=generator) < torch.rand(1, generator=generator)
        keep_UT[:, -1] = True
        kind = row % 3 if special else 0
        limits = [
            int(kept) + (row + head) % 3 for head, kept in enumerate(keep_UT.sum(1))
        ]  # a different limit per head
        entries.append(
            Entry(
                row,
                keep_UT,
                reserve,
                store=Kivi(bits=4, group_size=4, residual=8) if kind == 1 else None,
                decoding=Decoding(AccumulateAndEvict(window=1), buffer=row % 2) if kind == 2 else None,
                score_UT=torch.rand(heads, tokens, generator=generator) if kind == 2 else None,
                base_U=limits if kind == 2 else None,
            )
        )
    return entries


def full_attention(q_HTD: torch.Tensor, k_USD: torch.Tensor, v_USD: torch.Tensor, scaling: float) -> torch.Tensor:
    """Return causal attention of the T newest of S tokens, computed in float64, token by token."""
    heads, tokens, _ = q_HTD.shape
    group = heads // k_USD.shape[0]
    out = torch.empty_like(q_HTD)
    for h in range(heads):
        for t in range(tokens):
            seen = k_USD.shape[1] - tokens + t + 1
            weights = (k_USD[h // group, :seen].double() @ q_HTD[h, t].double() * scaling).softmax(0)
            out[h, t] = (weights[:, None] * v_USD[h // group, :seen].double()).sum(0)
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 5),
    heads=st.integers(1, 3),
    group=st.integers(1, 3),
    tokens=st.integers(1, 60),
    reserve=st.integers(0, 4),
    steps=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    special=st.booleans(),
)
@example(seed=1, rows=3, heads=1, group=1, tokens=6, reserve=1, steps=[1, 1], special=False)
@example(seed=1, rows=3, heads=3, group=1, tokens=8, reserve=3, steps=[1, 3, 1], special=False)
def test_ragged_and_masked_caches_agree(
    backend: str,
    seed: int,
    rows: int,
    heads: int,
    group: int,
    tokens: int,
    reserve: int,
    steps: list[int],
    special: bool,
) -> None:
    """Both caches give the same output and lengths, also beyond the reserve and with rows that leave between steps."""
    g = torch.Generator().manual_seed(seed)
    k_UTD, v_UTD = (torch.randn(heads, tokens, DIM, generator=g) for _ in range(2))
    entries = random_entries(g, rows, heads, tokens, reserve, special)
    ragged, masked = ragged_cache(backend), MaskedCache(1)
    for cache in (ragged, masked):
        cache.add(0, entries, k_UTD, v_UTD)
    active = list(range(rows))
    for step, new in enumerate(steps):
        q = torch.randn(len(active), heads * group, new, DIM, generator=g)
        k, v = (torch.randn(len(active), heads, new, DIM, generator=g) for _ in range(2))
        outs = [cache.attend(0, active, q, k, v, 0.3) for cache in (ragged, masked)]
        torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-5)
        for row in active:
            assert (ragged.lengths(row), ragged.peak(row)) == (masked.lengths(row), masked.peak(row))
        if len(active) > 1:
            gone = active.pop(step % len(active))
            for cache in (ragged, masked):
                cache.release([gone])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    heads=st.integers(1, 3),
    script=st.lists(
        st.tuples(st.sampled_from(["join", "leave", "step", "compact"]), st.integers(1, 40)), min_size=2, max_size=14
    ),
    special=st.booleans(),
)
def test_rows_join_and_leave(backend: str, seed: int, heads: int, script: list[tuple[str, int]], special: bool) -> None:
    """Both caches give the same output and lengths while rows of any prompts join, step and leave in any order.

    Compacting changes none of it and leaves no memory to rows that are gone.
    """
    g = torch.Generator().manual_seed(seed)
    ragged, masked = ragged_cache(backend), MaskedCache(1)
    present: list[int] = []
    next_row = 0
    for action, number in [("join", 20), *script]:
        if action == "join":
            k_UTD, v_UTD = (torch.randn(heads, number, DIM, generator=g) for _ in range(2))
            entries = [
                replace(e, row=next_row + e.row)
                for e in random_entries(g, 1 + number % 3, heads, number, number % 5, special)
            ]
            for cache in (ragged, masked):
                cache.add(0, entries, k_UTD, v_UTD)
            present += [e.row for e in entries]
            next_row += 3
        elif action == "leave" and present:
            gone = present.pop(number % len(present))
            for cache in (ragged, masked):
                cache.release([gone])
        elif action == "compact":
            ragged.compact()
            assert special or ragged.bytes() == sum(ragged.used_bytes(r) + ragged.slack_bytes(r) for r in present)
        elif present:
            active = sorted(present, key=lambda row: (row * number) % 7)[: 1 + number % len(present)]
            new = 1 + number % 3
            q = torch.randn(len(active), heads * 2, new, DIM, generator=g)
            k, v = (torch.randn(len(active), heads, new, DIM, generator=g) for _ in range(2))
            outs = [cache.attend(0, active, q, k, v, 0.3) for cache in (ragged, masked)]
            torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-5)
        for row in present:
            assert (ragged.lengths(row), ragged.peak(row)) == (masked.lengths(row), masked.peak(row))
        used, slack = (sum(size(row) for row in present) for size in (ragged.used_bytes, ragged.slack_bytes))
        assert used + slack <= ragged.bytes() <= 2 * (used + slack) or special


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), heads=st.integers(1, 3), group=st.integers(1, 3), tokens=st.integers(1, 40))
def test_keeping_everything_gives_full_attention(backend: str, seed: int, heads: int, group: int, tokens: int) -> None:
    g = torch.Generator().manual_seed(seed)
    k_UTD, v_UTD = (torch.randn(heads, tokens, DIM, generator=g) for _ in range(2))
    cache = ragged_cache(backend)
    cache.add(0, [Entry(0, torch.ones(heads, tokens, dtype=torch.bool), 0)], k_UTD, v_UTD)
    for new in (1, 3, 1):
        q = torch.randn(1, heads * group, new, DIM, generator=g)
        k, v = (torch.randn(1, heads, new, DIM, generator=g) for _ in range(2))
        k_UTD, v_UTD = torch.cat([k_UTD, k[0]], 1), torch.cat([v_UTD, v[0]], 1)
        out = cache.attend(0, [0], q, k, v, 0.3)
        torch.testing.assert_close(out[0], full_attention(q[0], k_UTD, v_UTD, 0.3), rtol=1e-5, atol=1e-5)


def test_append_writes_in_place_until_the_reserve_is_used() -> None:
    cache = RaggedCache(1)
    keep_UT = torch.rand(2, 50, generator=torch.Generator().manual_seed(0)) < 0.5
    cache.add(0, [Entry(0, keep_UT, 20)], torch.randn(2, 50, DIM), torch.randn(2, 50, DIM))
    layer = cache._arenas[0]
    before = layer._arenas.first.buffers.k_RD.data_ptr(), cache.bytes()
    for _ in range(20):
        cache.attend(0, [0], torch.randn(1, 4, 1, DIM), torch.randn(1, 2, 1, DIM), torch.randn(1, 2, 1, DIM), 1.0)
    assert (layer._arenas.first.buffers.k_RD.data_ptr(), cache.bytes()) == before
    for _ in range(60):
        cache.attend(0, [0], torch.randn(1, 4, 1, DIM), torch.randn(1, 2, 1, DIM), torch.randn(1, 2, 1, DIM), 1.0)
    assert cache.bytes() > before[1]
    assert cache.lengths(0) == [[int(n) + 80 for n in keep_UT.sum(1)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_kept_tokens_and_declared_slack(dtype: torch.dtype) -> None:
    """Allocated bytes are kept tokens and slack; slack per segment is the reserve and at most max(16, an eighth)."""
    g = torch.Generator().manual_seed(1)
    entries = [Entry(r, torch.rand(3, 400, generator=g) < (r + 1) / 8, 16) for r in range(6)]
    cache = RaggedCache(1)
    cache.add(0, entries, torch.randn(3, 400, DIM).to(dtype), torch.randn(3, 400, DIM).to(dtype))
    token = 2 * DIM * dtype.itemsize
    kept = sum(int(e.keep_UT.sum()) for e in entries)
    used = sum(cache.used_bytes(r) for r in range(6))
    slack = sum(cache.slack_bytes(r) for r in range(6))
    assert used == kept * token
    assert cache.bytes() == used + slack
    bound = sum(16 + max(16, (int(n) + 16) // 8) for e in entries for n in e.keep_UT.sum(1))
    assert 18 * 16 * token <= slack <= bound * token


def test_released_rows_free_their_memory() -> None:
    g = torch.Generator().manual_seed(2)
    entries = [Entry(r, torch.ones(2, 100, dtype=torch.bool), 4) for r in range(4)]
    cache = RaggedCache(1)
    cache.add(0, entries, torch.randn(2, 100, DIM, generator=g), torch.randn(2, 100, DIM, generator=g))
    whole = cache.bytes()
    cache.release([0, 1])
    assert cache.bytes() <= whole // 2
    q, k = torch.randn(2, 2, 1, DIM, generator=g), torch.randn(2, 2, 1, DIM, generator=g)
    assert cache.attend(0, [2, 3], q, k, k, 1.0).shape == (2, 2, 1, DIM)
    cache.release([2, 3])
    assert cache.bytes() == 0


def test_a_row_that_leaves_before_the_next_prompt_is_merged() -> None:
    """An arena without rows is merged with one that has some."""
    g = torch.Generator().manual_seed(2)
    ragged, masked = RaggedCache(1), MaskedCache(1)
    for row, tokens in enumerate((9, 300)):
        k_UTD, v_UTD = (torch.randn(2, tokens, DIM, generator=g) for _ in range(2))
        for cache in (ragged, masked):
            cache.add(0, [Entry(row, torch.ones(2, tokens, dtype=torch.bool), 4)], k_UTD, v_UTD)
    q, k = torch.randn(1, 2, 1, DIM, generator=g), torch.randn(1, 2, 1, DIM, generator=g)
    outs = []
    for cache in (ragged, masked):
        cache.release([0])
        outs.append(cache.attend(0, [1], q, k, k, 1.0))
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-5)


def test_a_row_that_keeps_nothing_attends_to_its_new_token() -> None:
    cache = RaggedCache(1)
    cache.add(0, [Entry(0, torch.zeros(2, 5, dtype=torch.bool), 0)], *torch.randn(2, 2, 5, DIM).unbind())
    assert cache.used_bytes(0) == cache.slack_bytes(0) == cache.bytes() == 0
    v = torch.randn(1, 2, 1, DIM)
    assert torch.equal(cache.attend(0, [0], torch.randn(1, 2, 1, DIM), torch.randn(1, 2, 1, DIM), v, 1.0), v)


def test_growth_is_geometric_and_drops_released_rows() -> None:
    cache = RaggedCache(1)
    entries = [Entry(r, torch.ones(2, 300, dtype=torch.bool), 4) for r in range(3)]
    cache.add(0, entries, torch.randn(2, 300, DIM), torch.randn(2, 300, DIM))
    cache.release([1])
    sizes = set()
    for _ in range(400):
        k = torch.randn(2, 2, 1, DIM)
        cache.attend(0, [0, 2], torch.randn(2, 2, 1, DIM), k, k, 1.0)
        sizes.add(cache.bytes())
    assert len(sizes) <= 5, "a layer is copied at most each time it has grown by half"
    assert cache.bytes() <= 2 * 2 * 2 * int(1.5 * 700) * DIM * 4, "two rows, two heads, K and V, and no released row"
    assert cache.lengths(0) == cache.lengths(2) == [[700, 700]]
    cache.release([0])
    cache.add(0, [Entry(0, torch.ones(2, 10, dtype=torch.bool), 0)], torch.randn(2, 10, DIM), torch.randn(2, 10, DIM))
    assert (cache.lengths(0), cache.lengths(2)) == ([[10, 10]], [[700, 700]])


@pytest.mark.parametrize("policy", [None, Decoding(AccumulateAndEvict(window=0.5))])
@pytest.mark.parametrize("kind", [RaggedCache, MaskedCache])
def test_half_precision_keeps_large_logits_exact(
    kind: type[RaggedCache] | type[MaskedCache], policy: Decoding | None
) -> None:
    """Logits exceed a hundred here: rounding them to bfloat16 before scaling would change the output by a tenth."""
    g = torch.Generator().manual_seed(4)
    k, v = (torch.randn(2, 200, 128, generator=g).bfloat16() for _ in range(2))
    q = (4 * torch.randn(1, 4, 1, 128, generator=g)).bfloat16()
    new_k, new_v = (torch.randn(1, 2, 1, 128, generator=g).bfloat16() for _ in range(2))
    keep_UT, score_UT = torch.ones(2, 200, dtype=torch.bool), torch.rand(2, 200, generator=g)
    cache = kind(1)
    cache.add(0, [Entry(0, keep_UT, 1, decoding=policy, score_UT=score_UT, base_U=[300, 300])], k, v)
    out = cache.attend(0, [0], q, new_k, new_v, 128**-0.5)[0].double()
    exact = full_attention(q[0].double(), torch.cat([k, new_k[0]], 1), torch.cat([v, new_v[0]], 1), 128**-0.5)
    assert (out - exact).norm() < 1e-2 * exact.norm()


def test_only_the_ragged_cache_can_be_recorded() -> None:
    assert isinstance(RaggedCache(1), Recordable) and not isinstance(MaskedCache(1), Recordable)


@pytest.mark.gxx
@pytest.mark.parametrize(("later", "arenas"), [(0, 3), (30, 3), (10**4, 1)])
def test_a_prompt_in_several_calls_is_the_same_as_in_one(later: int, arenas: int) -> None:
    """Later calls write after the slots of earlier ones if these left room. Otherwise their arenas are merged."""
    g = torch.Generator().manual_seed(3)
    parts = [random_entries(g, 3, heads=2, tokens=40, reserve=4, special=False) for _ in range(3)]
    parts = [[replace(entry, row=3 * i + entry.row) for entry in part] for i, part in enumerate(parts)]
    keys = [torch.randn(2, 2, 40, DIM, generator=g).unbind() for _ in parts]
    cache, masked = ragged_cache("cpu"), MaskedCache(1)
    for part, (k_UTD, v_UTD) in zip(parts, keys, strict=True):
        cache.add(0, part, k_UTD, v_UTD, later)
        masked.add(0, part, k_UTD, v_UTD)
        later = 0
    assert len(cache._arenas[0]._arenas._arenas) == arenas
    assert cache.bytes() == sum(cache.used_bytes(row) + cache.slack_bytes(row) for row in range(9))
    rows = [8, 0, 4, 3, 1]
    for _ in range(6):  # the last steps need more than the reserve
        q, k, v = (torch.randn(5, heads, 1, DIM, generator=g) for heads in (4, 2, 2))
        outs = [each.attend(0, rows, q, k, v, 0.5) for each in (cache, masked)]
        torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
    assert [cache.lengths(row) for row in range(9)] == [masked.lengths(row) for row in range(9)]
