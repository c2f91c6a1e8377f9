"""The decode step for CPUs, compiled by g++: against attention in double precision, and bit for bit with itself.

Shape suffixes as in kvbench_kernels.backends.base.
"""

from __future__ import annotations

import pytest
import torch

from kvbench_kernels import backends, build
from kvbench_kernels.backends import AttentionSpec, Buffers, Lanes, cpu
from kvbench_kernels.backends.cpu import CpuBackend
from kvbench_kernels.build import cache, recipes
from kvbench_kernels.ops import host_rows, library, reference
from kvbench_kernels.ops.host_library import host_library
from tests.helpers.kernels_prefill import generator

CPU = torch.device("cpu")
pytestmark = pytest.mark.gxx


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    lack = backends.unmet_requirement("cpu", AttentionSpec(CPU, torch.float32, 64, 1), compile_now=True)
    assert lack is None, lack
    return CpuBackend()


def world(generator, lengths, room, dim, dtype=torch.float32):
    """Draw segments with NaN after the live slots, at odd starts."""
    capacities = [length + room for length in lengths]
    starts = torch.tensor([3, *capacities]).cumsum(0)
    k_RD, v_RD = (torch.full((int(starts[-1]) + 5, dim), torch.nan) for _ in range(2))
    for start, length in zip(starts.tolist(), lengths, strict=False):
        k_RD[start : start + length] = torch.randn(length, dim, generator=generator)
        v_RD[start : start + length] = torch.randn(length, dim, generator=generator)
    return Buffers(
        k_RD.to(dtype), v_RD.to(dtype), starts.int(), torch.tensor(lengths, dtype=torch.int32), max(capacities)
    )


def step(backend, generator, buffers, lanes, group, tokens, scaling=0.2, loud=1.0):
    """Run one call; return its relative error against double precision. The buffers of both must agree."""
    batch, dim = len(lanes.segment_N) // 2, buffers.k_RD.shape[1]
    q, k, v = (
        (loud * torch.randn(batch, tokens, heads, dim, generator=generator).transpose(1, 2)).to(buffers.k_RD.dtype)
        for heads in (2 * group, 2, 2)
    )
    exact = [x.double() for x in (buffers.k_RD, buffers.v_RD)]
    length_S = buffers.length_S.clone()
    out = backend.append_and_attend(q, k, v, buffers, lanes, scaling)
    expected = torch.empty_like(q, dtype=torch.float64)
    reference.ragged_append_decode(
        q.double(), k.double(), v.double(), *exact, buffers.start_S1, length_S, lanes.segment_N, scaling, expected,
        None, torch.zeros(1, dtype=torch.int32),
    )  # fmt: skip
    assert torch.equal(buffers.length_S, length_S)
    for own, theirs in zip((buffers.k_RD, buffers.v_RD), exact, strict=True):
        torch.testing.assert_close(own.double(), theirs, rtol=0, atol=0, equal_nan=True)
    return float((out.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", cpu.DTYPES, ids=str)
@pytest.mark.parametrize("dim", cpu.HEAD_DIMS)
def test_against_double_precision(backend: CpuBackend, dim: int, dtype: torch.dtype) -> None:
    against_double_precision(backend, dim, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-march=x86-64-v3", "-O1"), ("-march=x86-64-v2", "-O1")], ids=["8", "4"])
def test_narrower_vectors_against_double_precision(flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that has AVX-512 runs the code for AVX2, and that for other CPUs, too."""
    narrow = CpuBackend()
    monkeypatch.setattr(narrow, "_library", library.load(cache.built(recipes.cpu(flags))))
    for dim in (16, 64, 80):
        for dtype in cpu.DTYPES:
            against_double_precision(narrow, dim, dtype)


def against_double_precision(backend: CpuBackend, dim: int, dtype: torch.dtype) -> None:
    """Check lengths around the vector and the piece, groups of any size, several new tokens, logits up to a hundred."""
    g = generator(0)
    choices = [1, 2, 15, 16, 17, 63, 64, 65, 254, 255, 256, 257, 511, 512, 600]
    for case in range(8):
        lengths = [choices[int(i)] for i in torch.randint(len(choices), (6,), generator=g)]
        group, tokens = (int(torch.randint(1, 9, (1,), generator=g)) for _ in range(2))
        if case == 1:
            tokens = 40  # a question: more queries than the kernel takes at once
        buffers = world(g, lengths, 2 * tokens, dim, dtype)
        for _ in range(2):  # the second call reads what the first one appended
            lanes = Lanes(torch.randperm(6, generator=g)[:4].tolist(), 6, CPU)
            loud = case % 3 == 0  # float32 rounds a logit of a hundred by 4e-6, and the weight by as much of itself
            error = step(backend, g, buffers, lanes, group, tokens, loud=3.0 if loud else 1.0)
            bound = 1e-5 if loud else 2e-6
            assert error < (5e-3 if dtype == torch.bfloat16 else bound), (dim, lengths, group, tokens)


def test_a_segment_that_was_empty(backend):
    g = generator(0)
    assert step(backend, g, world(g, [0, 0, 3, 0], 4, 64), Lanes([3, 1], 4, CPU), 3, 1) < 2e-6


def test_a_row_depends_neither_on_other_rows_nor_on_threads(backend):
    g = generator(0)
    lengths = [700, 3, 90, 300, 256, 41]
    arena = world(g, lengths, 4, 64)
    q, k, v = (torch.randn(3, heads, 1, 64, generator=g) for heads in (6, 2, 2))

    def run(rows, threads):
        buffers = Buffers(
            arena.k_RD.clone(), arena.v_RD.clone(), arena.start_S1, arena.length_S.clone(), arena.capacity
        )
        lanes = Lanes([2 * row + head for row in rows for head in range(2)], 6, CPU)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return backend.append_and_attend(q[rows], k[rows], v[rows], buffers, lanes, 0.125)
        finally:
            torch.set_num_threads(before)

    together = run([0, 1, 2], 2)
    for rows, threads in (([0], 1), ([2, 1], 2), ([0, 1, 2], 1), ([0, 1, 2], 5)):
        assert torch.equal(run(rows, threads), together[rows])


def test_no_room_changes_nothing(backend):
    g = generator(0)
    buffers = world(g, [5, 6, 7, 8], 1, 64)
    before = [buffers.k_RD.clone(), buffers.length_S.clone()]
    q = torch.zeros(2, 2, 2, 64)
    with pytest.raises(RuntimeError, match=r"segment 2 of a ragged cache had no room"):
        backend.append_and_attend(q, q, q, buffers, Lanes([2, 0, 3, 1], 4, CPU), 1.0)
    torch.testing.assert_close([buffers.k_RD, buffers.length_S], before, rtol=0, atol=0, equal_nan=True)


def test_what_is_not_a_number_stays_so(backend):
    """A model that overflows must show it."""
    g = generator(0)
    for bad in (torch.nan, torch.inf):
        buffers = world(g, [40, 300], 1, 64)
        q, k = torch.randn(1, 2, 1, 64, generator=g), torch.randn(1, 2, 1, 64, generator=g)
        q[0, 0, 0, 5] = bad
        out = backend.append_and_attend(q, k, k, buffers, Lanes([0, 1], 2, CPU), 1.0)
        assert out[0, 0].isnan().all() and out[0, 1].isfinite().all()


def test_long_questions_and_other_dtypes_go_by_slabs(backend, monkeypatch):
    called = []
    monkeypatch.setattr(backend._for_many, "append_and_attend", lambda q, *rest: called.append(q.shape))
    for tokens, dtype in ((513, torch.float32), (1, torch.float16)):
        q = torch.zeros(1, 2, tokens, 64, dtype=dtype)
        backend.append_and_attend(q, q, q, None, Lanes([0, 1], 2, CPU), 1.0)
    assert len(called) == 2


@pytest.mark.parametrize("dtype", cpu.DTYPES, ids=str)
def test_gathered_rows_are_those_of_the_reference(backend, dtype):
    """Kept tokens go to their slots in order, the rest of a segment becomes 0, and nothing else is written."""
    g = generator(0)
    for tokens in (1, 7, 8, 9, 300):
        for extra in (0, 3):  # the heads' rows are not next to each other
            k, v = (torch.randn(2, tokens, 16 + extra, generator=g).to(dtype)[..., :16] for _ in range(2))
            assert backend.host.takes(k, v)
            keep = torch.rand(7, tokens, generator=g) < torch.rand(7, 1, generator=g)
            head = torch.randint(2, (7,), generator=g, dtype=torch.int32)
            room = torch.randint(0, 4, (7,), generator=g)
            start = torch.cat([torch.tensor([1]), 1 + (keep.sum(1) + room).cumsum(0)]).int()
            own, wanted = ([torch.full((int(start[-1]) + 1, 16), 5, dtype=dtype) for _ in range(2)] for _ in range(2))
            for x in wanted:
                x[1:-1] = 0
            reference.ragged_gather(k, v, keep, head, start, *wanted)
            backend.host.gather(k, v, keep, head, start, *own)
            assert all(map(torch.equal, own, wanted))
    start[4] = start[3]  # a segment without slots
    keep[3] = True
    with pytest.raises(RuntimeError, match="cpu_gather"):
        backend.host.gather(k, v, keep, head, start, *own)


def test_slots_of_policies_are_appended_and_dropped(backend):
    """A new token has a position and no state; the last token of a head takes the place of the one that leaves."""
    g = generator(0)
    rows, heads, width, dim = 3, 2, 10, 16
    length = torch.randint(1, width - 2, (rows, heads), generator=g)
    first = (torch.randperm(rows * heads, generator=g) * width).view(rows, heads)
    places = host_rows.Places(
        torch.arange(60, dtype=torch.int32), torch.rand(60, generator=g), torch.zeros(60, dtype=torch.bool),
        length.clone(), torch.tensor([100, 200, 300], dtype=torch.int32), first,
    )  # fmt: skip
    before = [x.clone() for x in places]
    backend.host.append(places, 2)
    assert torch.equal(places.length_YU, length + 2) and places.seen_Y.tolist() == [102, 202, 302]
    for y in range(rows):
        for u in range(heads):
            new = int(first[y, u] + length[y, u])
            assert places.pos_X[new : new + 2].tolist() == [100 * y + 100, 100 * y + 101]
            assert places.live_X[new : new + 2].all() and not places.state_X[new : new + 2].any()
            before[0][new : new + 2], before[1][new : new + 2] = places.pos_X[new : new + 2], 0
    assert places.live_X.sum() == 2 * rows * heads
    assert torch.equal(places.pos_X, before[0]) and torch.equal(places.state_X, before[1])

    k, v = torch.randn(2, 60, dim, generator=g).unbind()
    stored = torch.full((8,), 50, dtype=torch.int32)
    start, segment = first.flip(0).contiguous(), torch.randperm(8, generator=g)[:6].view(rows, heads)
    column = torch.stack([torch.randint(int(n), (1,), generator=g) for n in places.length_YU.flatten()]).view(3, 2)
    limit, buffer = length + torch.tensor([[0, 1], [1, 2], [2, 0]]), torch.tensor([1, 0, 0])
    due = places.length_YU > limit + buffer[:, None]
    kept, kv, held = [x.clone() for x in places], [k.clone(), v.clone()], stored.clone()
    backend.host.drop(
        places, k, v, stored, start_YU=start, segment_YU=segment, column_YU=column, limit_YU=limit, buffer_Y=buffer
    )
    for y, u in due.nonzero().tolist():
        last, at = int(kept[3][y, u]) - 1, int(column[y, u])
        for x in kept[:2]:
            x[first[y, u] + at] = x[first[y, u] + last]
        for x in kv:
            x[start[y, u] + at] = x[start[y, u] + last]
        kept[2][first[y, u] + last] = False
        kept[3][y, u] -= 1
        held[segment[y, u]] -= 1
    assert due.tolist() == [[True, False], [True, False], [False, True]]
    assert all(map(torch.equal, [*places, k, v, stored], [*kept, *kv, held]))


def test_without_a_compiler_torch_takes_over(monkeypatch):
    def no_compiler(force=False):
        raise ValueError("no g++ on PATH")

    host_library.cache_clear()
    monkeypatch.setattr(build, "cpu", no_compiler)
    try:
        chosen = backends.choose_backend("auto", AttentionSpec(CPU, torch.float32, 64, 3))
        assert chosen == backends.Choice("torch", "not cpu: no g++ on PATH")
        with pytest.raises(ValueError, match="kernel=cpu: no g\\+\\+ on PATH"):
            backends.choose_backend("cpu", AttentionSpec(CPU, torch.float32, 64, 3))
    finally:
        host_library.cache_clear()


def test_without_room_on_the_disk_torch_takes_over(monkeypatch):
    def full(force=False):
        raise OSError(28, "No space left on device")

    host_library.cache_clear()
    monkeypatch.setattr(build, "cpu", full)
    try:
        chosen = backends.choose_backend("auto", AttentionSpec(CPU, torch.float32, 64, 3))
        assert chosen.name == "torch" and "No space left on device" in chosen.reason
    finally:
        host_library.cache_clear()


def test_an_old_cpu_goes_by_torch(monkeypatch):
    host_library.cache_clear()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    try:
        chosen = backends.choose_backend("auto", AttentionSpec(CPU, torch.float32, 64, 3))
        assert chosen == backends.Choice("torch", "not cpu: this CPU has no AVX2")
    finally:
        host_library.cache_clear()
