"""The torch references of the ops: against loops over single numbers, and against the methods' own code.

Shape suffixes as in kvbench_kernels.ops.reference.
"""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor

from kvbench.methods import rounding
from kvbench.methods.base import LayerBudget, Protected
from kvbench.methods.candidates import Candidates
from kvbench.methods.context import LayerContext
from kvbench.methods.heads.adaptive import Adaptive
from kvbench.methods.heads.uniform import Uniform
from kvbench.methods.scores.column_sums import ColumnSums
from kvbench.methods.scores.window_attention import WindowAttention
from kvbench.methods.select.top_k import TopK
from kvbench_kernels.ops import reference as ops
from kvbench_kernels.ops.apportion import apportion
from tests.helpers.kernels_prefill import SEED, draw, generator


def dot(a_D: Tensor, b_D: Tensor) -> float:
    return math.fsum(x * y for x, y in zip(a_D.tolist(), b_D.tolist(), strict=True))


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = math.fsum(math.exp(x - top) for x in logits)
    return [math.exp(x - top) / total for x in logits]


class Arena:
    """A random arena: segments in an order of their own, slack and foreign segments full of NaN."""

    def __init__(self, g: torch.Generator, lanes: int, dim: int, room: int) -> None:
        segments = lanes + draw(g, 0, 2)
        lengths = [draw(g, 0, 9) for _ in range(segments)]
        starts = [0, *itertools.accumulate(n + room + draw(g, 0, 2) for n in lengths)]
        self.start_S1 = torch.tensor(starts, dtype=torch.int32)
        self.length_S = torch.tensor(lengths, dtype=torch.int32)
        self.segment_N = torch.randperm(segments, generator=g)[:lanes].int()
        self.k_RD, self.v_RD = (torch.full((starts[-1], dim), torch.nan, dtype=torch.float64) for _ in range(2))
        for segment in self.segment_N.tolist():
            live = slice(starts[segment], starts[segment] + lengths[segment])
            for x_RD in (self.k_RD, self.v_RD):
                x_RD[live] = torch.randn(lengths[segment], dim, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("offset", range(6))
def test_append_and_decode_against_loops(offset: int) -> None:
    g = generator(offset)
    batch, kv_heads, group, tokens, dim = draw(g, 1, 3), draw(g, 1, 3), draw(g, 1, 3), draw(g, 1, 4), 4
    arena = Arena(g, batch * kv_heads, dim, room=tokens)
    k_BUTD, v_BUTD = torch.randn(2, batch, kv_heads, tokens, dim, generator=g, dtype=torch.float64)
    q_BHTD = torch.randn(batch, kv_heads * group, tokens, dim, generator=g, dtype=torch.float64)
    out_BHTD, status = torch.full_like(q_BHTD, torch.nan), torch.zeros(1, dtype=torch.int32)
    before = arena.length_S.tolist()
    old = {s: arena.k_RD[arena.start_S1[s] :][: before[s]].clone() for s in arena.segment_N.tolist()}
    ops.ragged_append_decode(
        q_BHTD, k_BUTD, v_BUTD, arena.k_RD, arena.v_RD, arena.start_S1, arena.length_S, arena.segment_N, 0.7,
        out_BHTD, None, status,
    )  # fmt: skip
    assert status.item() == 0
    for (b, u), segment in zip(itertools.product(range(batch), range(kv_heads)), arena.segment_N.tolist(), strict=True):
        start = int(arena.start_S1[segment])
        assert arena.length_S[segment] == before[segment] + tokens
        k_LD, v_LD = (x[start : start + before[segment] + tokens] for x in (arena.k_RD, arena.v_RD))
        assert k_LD.equal(torch.cat([old[segment], k_BUTD[b, u]])) and v_LD[before[segment] :].equal(v_BUTD[b, u])
        for h, t in itertools.product(range(u * group, (u + 1) * group), range(tokens)):
            seen = before[segment] + t + 1
            weights = softmax([0.7 * dot(q_BHTD[b, h, t], k_LD[i]) for i in range(seen)])
            wanted = sum(w * v_LD[i] for i, w in enumerate(weights))
            torch.testing.assert_close(out_BHTD[b, h, t], wanted, rtol=1e-10, atol=1e-12)


def test_decode_of_a_token_that_sees_nothing_is_zero() -> None:
    start_S1, length_S = torch.tensor([0, 4, 8]), torch.tensor([1, 0])
    kv_RD = torch.full((8, 4), torch.nan)
    kv_RD[0] = 1
    out_BHTD = torch.full((1, 2, 2, 4), torch.nan)
    q_BHTD = torch.randn(1, 2, 2, 4)
    ops.ragged_decode(q_BHTD, kv_RD, kv_RD, start_S1, length_S, torch.tensor([0, 1]), 1.0, out_BHTD)
    assert out_BHTD[0, 0].tolist() == [[0] * 4, [1] * 4], "two tokens, one slot: the second token sees it"
    assert out_BHTD[0, 1].eq(0).all()


def test_append_without_room_leaves_the_segment_and_names_it() -> None:
    start_S1, length_S = torch.tensor([0, 2, 6]), torch.tensor([1, 1])
    k_RD, v_RD = torch.zeros(6, 4), torch.zeros(6, 4)
    k_BUTD = torch.ones(1, 2, 2, 4)
    status = torch.zeros(1, dtype=torch.int32)
    ops.ragged_append(k_RD, v_RD, start_S1, length_S, torch.tensor([1, 0]), k_BUTD, k_BUTD, status)
    assert status.item() == 1 and length_S.tolist() == [1, 3]
    assert k_RD[:, 0].tolist() == [0, 0, 0, 1, 1, 0] and v_RD.equal(k_RD)


@pytest.mark.parametrize("offset", range(8))
def test_window_score_and_column_sums_against_loops(offset: int) -> None:
    g = generator(100 + offset)
    kv_heads, group, window, dim = draw(g, 1, 2), draw(g, 1, 3), draw(g, 1, 3), 4
    tokens = window + draw(g, 0, 7)
    q_HTD = torch.randn(kv_heads * group, tokens, dim, generator=g, dtype=torch.float64)
    k_UTD = torch.randn(kv_heads, tokens, dim, generator=g, dtype=torch.float64)
    logits = [
        [[0.6 * dot(q_TD[t], k_UTD[h // group, j]) for j in range(t + 1)] for t in range(tokens)]
        for h, q_TD in enumerate(q_HTD)
    ]
    lse_HT = torch.tensor([[math.log(math.fsum(map(math.exp, row))) for row in rows] for rows in logits]).double()
    weights = [[softmax(row) + [0.0] * (tokens - len(row)) for row in rows] for rows in logits]
    torch.testing.assert_close(ops.row_lse(q_HTD, k_UTD, 0.6), lse_HT, rtol=1e-6, atol=1e-6)
    lse_HT = ops.row_lse(q_HTD, k_UTD, 0.6)
    sums_HT = torch.tensor([[sum(row[j] for row in rows) for j in range(tokens)] for rows in weights]).double()
    torch.testing.assert_close(ops.column_sums(q_HTD, k_UTD, lse_HT, 0.6), sums_HT, rtol=1e-6, atol=1e-6)

    past, kernel_size = tokens - window, 1 + 2 * draw(g, 0, 3)
    means = [[sum(row[j] for row in rows[past:]) / window for j in range(past)] for rows in weights]
    reduce = {"mean": lambda x: sum(x) / len(x), "max": max, "sum": sum}
    half = kernel_size // 2
    for how, pool, lse in itertools.product(reduce, ["max", "avg", "none"], [None, lse_HT[:, past:]]):
        score_UN = ops.window_score(q_HTD[:, past:], k_UTD, lse, 0.6, how, pool, kernel_size)
        assert score_UN.shape == (kv_heads, past) and score_UN.dtype == torch.float64
        for u, j in itertools.product(range(kv_heads), range(past)):
            row = [reduce[how]([means[h][i] for h in range(u * group, (u + 1) * group)]) for i in range(past)]
            near = row[max(0, j - half) : j + half + 1]
            wanted = {"max": max(near), "avg": sum(near) / kernel_size, "none": row[j]}[pool]
            assert score_UN[u, j].item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("reduce", "pool"), list(itertools.product(["mean", "max", "sum"], ["max", "avg", "none"])))
def test_scores_are_those_of_the_methods(reduce: str, pool: str) -> None:
    g = generator(200)
    q_HTD, k_UTD = torch.randn(6, 300, 16, generator=g), torch.randn(2, 300, 16, generator=g)
    ctx = LayerContext(q_HTD, k_UTD, k_UTD, scaling=0.3)
    theirs_UT = WindowAttention(8, kernel_size=5, pooling=pool, reduce=reduce)(ctx)
    ours_UN = ops.window_score(q_HTD[:, -8:], k_UTD, None, 0.3, reduce, pool, 5)
    assert ours_UN.equal(theirs_UT[:, :-8])
    sums_UGT = ops.column_sums(q_HTD, k_UTD, ops.row_lse(q_HTD, k_UTD, 0.3), 0.3).view(2, 3, 300)
    torch.testing.assert_close(sums_UGT.mean(1), ColumnSums("mean")(ctx), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scope", ["head", "layer"])
@pytest.mark.parametrize("offset", range(40))
def test_select_is_that_of_the_methods(offset: int, scope: str) -> None:
    g = generator(300 + offset)
    heads, candidates = draw(g, 1, 9), draw(g, 1, 40)
    score_UN = torch.randint(-3, 4, (heads, candidates), generator=g) / 2  # many ties
    score_UN[torch.rand(score_UN.shape, generator=g) < 0.1] *= -0.0
    if offset % 4 == 0:
        score_UN[torch.rand(score_UN.shape, generator=g) < 0.1] = torch.nan
    total = draw(g, 0, heads * candidates)
    floor = [0.0, 0.2, 1.0, draw(g, 1, 99) / 100][offset % 4]
    part = Uniform() if scope == "head" else Adaptive(floor)
    theirs = Candidates(score_UN)
    x_UTD = torch.zeros(heads, candidates, 1)
    ctx = LayerContext(x_UTD, x_UTD, x_UTD)
    budget = part(ctx, theirs, total, LayerBudget(total, candidates, 1, heads, heads))
    wanted_UN = TopK()(ctx, theirs, budget, Protected(0, 0))
    keep_UN, count_U = ops.select(score_UN, total, floor, scope)
    assert keep_UN.equal(wanted_UN) and count_U.tolist() == theirs.counts(budget) and keep_UN.sum().item() == total


@pytest.mark.parametrize("offset", range(200))
def test_apportion_is_that_of_the_methods(offset: int) -> None:
    print(f"KVBENCH_SEED={SEED} draws the same again")
    rng = random.Random(SEED + offset)
    heads, limit = rng.randint(1, 12), rng.randint(0, 50)
    total = rng.randint(0, heads * limit)
    weights = [rng.choice([0.0, rng.random(), rng.randint(0, 8), 100 * rng.random()]) for _ in range(heads)]
    assert apportion(weights, total, limit) == rounding.apportion(weights, total, limit)


def test_apportion_refuses_what_has_no_room() -> None:
    with pytest.raises(ValueError, match="total=5"):
        apportion([1.0, 1.0], 5, limit=2)


@pytest.mark.parametrize("offset", range(6))
def test_gather_and_relayout_against_loops(offset: int) -> None:
    g = generator(600 + offset)
    kv_heads, tokens, segments = draw(g, 1, 3), draw(g, 1, 12), draw(g, 1, 5)
    k_UTD, v_UTD = torch.randn(2, kv_heads, tokens, 2, generator=g)
    keep_ST = torch.rand(segments, tokens, generator=g) < 0.5
    head_S = torch.randint(kv_heads, (segments,), generator=g)
    lengths = keep_ST.sum(1).tolist()
    capacities = [n + draw(g, -1, 2) if n else 1 for n in lengths]  # one less than needed now and then
    start_S1 = torch.tensor([0, *itertools.accumulate(capacities)])
    k_RD, v_RD = torch.full((2, sum(capacities), 2), torch.nan)
    ops.ragged_gather(k_UTD, v_UTD, keep_ST, head_S, start_S1, k_RD, v_RD)
    for s, (length, capacity) in enumerate(zip(lengths, capacities, strict=True)):
        kept = [t for t in range(tokens) if keep_ST[s, t]][:capacity]
        for slot in range(capacity):
            for got_RD, x_UTD in ((k_RD, k_UTD), (v_RD, v_UTD)):
                row = got_RD[int(start_S1[s]) + slot]
                assert (
                    row.equal(x_UTD[int(head_S[s]), kept[slot]]) if slot < min(length, capacity) else row.isnan().all()
                )

    length_S = torch.tensor([min(n, c) for n, c in zip(lengths, capacities, strict=True)])
    source_M = torch.randperm(segments, generator=g)[: draw(g, 1, segments)]
    room = [max(1, int(length_S[s]) + draw(g, -1, 3)) for s in source_M]
    start_M1 = torch.tensor([0, *itertools.accumulate(room)])
    k_QD, v_QD = torch.full((2, sum(room), 2), torch.nan)
    ops.ragged_relayout(k_RD, v_RD, start_S1, length_S, source_M, start_M1, k_QD, v_QD)
    for m, s in enumerate(source_M.tolist()):
        for slot in range(room[m]):
            for got_QD, x_RD in ((k_QD, k_RD), (v_QD, v_RD)):
                row = got_QD[int(start_M1[m]) + slot]
                live = slot < length_S[s]
                assert row.equal(x_RD[int(start_S1[s]) + slot]) if live else row.isnan().all()
