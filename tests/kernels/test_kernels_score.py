"""The ops `window_score`, `row_lse` and `column_sums`, run on the CPU, against the references in float64.

Shape suffixes as in kvbench_kernels.ops.reference.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from kvbench_kernels.ops import launch, library
from kvbench_kernels.ops import reference as ops
from tests.helpers.kernels_prefill import (
    DIMS,
    DTYPES,
    GROUPS,
    POOLS,
    draw,
    emulated,
    fixed_generator,
    generator,
    needs_gxx,
    pick,
    poisoned,
    shows,
    shuffled,
    surrounded,
    with_bug,
)

pytestmark = [needs_gxx, pytest.mark.usefixtures(poisoned.__name__)]

GROUP_SIZES = (1, 3, 4, 5, 7, 8)
PAST = (
    1,
    15,
    16,
    17,
    63,
    64,
    65,
    127,
    128,
    129,
    255,
    256,
    257,
    300,
)  # tokens before the window: around tiles and blocks
CLOSE = {"rtol": 3e-5, "atol": 1e-30}  # of each score: float32 through about ten products and an exponential


def prompt(
    g: torch.Generator, kv_heads: int, group: int, queries: int, tokens: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, float]:
    """Draw the last queries, the keys and the scaling of a prompt, surrounded by NaN. Some logits are large."""
    q_HTD = torch.randn(kv_heads * group, queries, dim, generator=g) * pick(g, 1, 1, 4)
    k_UTD = torch.randn(kv_heads, tokens, dim, generator=g)
    return surrounded(q_HTD.to(dtype)), surrounded(k_UTD.to(dtype), 32), dim**-0.5


def exact_lse(q_HTD: Tensor, k_UTD: Tensor, scaling: float) -> Tensor:
    """Return the log-sum-exp of the last tokens: [H, queries]."""
    logits_UGTC = ops._logits(q_HTD.double(), k_UTD.double(), k_UTD.shape[1] - q_HTD.shape[1], scaling)
    return logits_UGTC.logsumexp(-1).flatten(0, 1)


def window_score_differs(
    kernels: library.Library, g: torch.Generator, group: int, window: int, past: int, dim: int, dtype: torch.dtype
) -> bool:
    """Return True if a score differs from float64 on a random prompt, with and without the lse, for all reductions."""
    q_HWD, k_UTD, scaling = prompt(g, draw(g, 1, 3), group, window, past + window, dim, dtype)
    lse_HW = exact_lse(q_HWD, k_UTD, scaling).float()
    for how, pool, lse in itertools.product(GROUPS, POOLS, (None, lse_HW)):
        size = pick(g, 1, 3, 5, 7, 15)
        score_UN = launch.window_score(kernels, None, q_HWD, k_UTD, lse, scaling, how, pool, size)
        exact_UN = ops.window_score(q_HWD.double(), k_UTD.double(), None, scaling, how, pool, size)
        if score_UN.dtype != torch.float32 or not score_UN.double().allclose(exact_UN, **CLOSE):
            return True
    return False


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", DIMS)
def test_window_score_of_every_head_dimension(dim: int, dtype: torch.dtype) -> None:
    g = generator(1)
    for past in PAST[dim % 3 :: 3]:
        group, window = pick(g, *GROUP_SIZES), pick(g, 1, 7, 8, 9, 16)
        assert not window_score_differs(emulated(), g, group, window, past, dim, dtype), (group, window, past)


@pytest.mark.parametrize("group", GROUP_SIZES)
def test_window_score_of_every_group(group: int) -> None:
    g = generator(2)
    for past in (pick(g, *PAST), draw(g, 1, 300)):
        window = draw(g, 1, 40)
        assert not window_score_differs(emulated(), g, group, window, past, 64, torch.bfloat16), (window, past)


@pytest.mark.parametrize(
    ("group", "window", "dim"),
    [(8, 65, 64), (3, 128, 128), (2, 200, 256), (70, 9, 64)],  # up to four times what shared memory holds
)
def test_window_score_of_more_queries_than_shared_memory_holds(group: int, window: int, dim: int) -> None:
    assert not window_score_differs(emulated(), generator(3), group, window, 70, dim, torch.float16)


def test_the_window_alone_has_no_scores() -> None:
    q_HWD, k_UTD, scaling = prompt(generator(4), 2, 2, 9, 9, 64, torch.bfloat16)
    assert launch.window_score(emulated(), None, q_HWD, k_UTD, None, scaling, "mean", "max", 7).shape == (2, 0)


@pytest.mark.parametrize("dim", DIMS)
def test_equal_keys_get_equal_scores(dim: int) -> None:
    g = generator(5)
    q_HWD, kinds_UTD, scaling = prompt(g, 2, 3, 11, 5, dim, torch.bfloat16)
    kind_T = torch.randint(5, (700,), generator=g)
    k_UTD = surrounded(kinds_UTD[:, kind_T])
    for how in GROUPS:
        score_UN = launch.window_score(emulated(), None, q_HWD, k_UTD, None, scaling, how, "none", 1)
        for kind in range(5):
            assert all(len(scores.unique()) == 1 for scores in score_UN[:, kind_T[:-11] == kind])


def test_scores_of_keys_that_are_not_finite_are_nan_as_in_torch() -> None:
    q_HWD, k_UTD, scaling = prompt(generator(6), 1, 2, 8, 100, 64, torch.bfloat16)
    lse_HW = exact_lse(q_HWD, k_UTD, scaling).float()
    k_UTD[0, 30] = torch.nan
    for how, pool in itertools.product(GROUPS, POOLS):
        score_UN = launch.window_score(emulated(), None, q_HWD, k_UTD, lse_HW, scaling, how, pool, 5)
        assert score_UN.isnan().equal(ops.window_score(q_HWD, k_UTD, lse_HW, scaling, how, pool, 5).isnan())


def lse_or_sums_differ(
    kernels: library.Library, g: torch.Generator, group: int, tokens: int, dim: int, dtype: torch.dtype
) -> bool:
    """Return True if a result differs from float64 on a random prompt."""
    q_HTD, k_UTD, scaling = prompt(g, draw(g, 1, 2), group, tokens, tokens, dim, dtype)
    exact_HT = exact_lse(q_HTD, k_UTD, scaling)
    lse_HT = launch.row_lse(kernels, None, q_HTD, k_UTD, scaling)
    if not lse_HT.double().allclose(exact_HT, rtol=1e-6, atol=3e-6):
        return True
    sums_HT = launch.column_sums(kernels, None, q_HTD, k_UTD, exact_HT.float(), scaling)
    return not sums_HT.double().allclose(ops.column_sums(q_HTD.double(), k_UTD.double(), exact_HT, scaling), **CLOSE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", DIMS)
def test_row_lse_and_column_sums_of_every_head_dimension(dim: int, dtype: torch.dtype) -> None:
    g = generator(7)
    for tokens in PAST[dim % 2 :: 2]:
        group = pick(g, *GROUP_SIZES) if tokens < 200 else 2
        assert not lse_or_sums_differ(emulated(), g, group, tokens, dim, dtype), (group, tokens)


def test_row_lse_and_column_sums_of_many_heads_and_many_tokens() -> None:
    g = generator(8)
    assert not lse_or_sums_differ(emulated(), g, 70, 20, 64, torch.bfloat16)
    assert not lse_or_sums_differ(emulated(), g, 1, 1100, 64, torch.bfloat16)


def everything(group: int, window: int, past: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(9)
    q_HTD, k_UTD, scaling = prompt(g, 2, group, past + window, past + window, 64, torch.bfloat16)
    lse_HT = launch.row_lse(emulated(), None, q_HTD, k_UTD, scaling)
    sums_HT = launch.column_sums(emulated(), None, q_HTD, k_UTD, lse_HT, scaling)
    q_HWD, lse_HW = q_HTD[:, past:], lse_HT[:, past:].contiguous()
    ways = ((None, "mean", "avg"), (lse_HW, "max", "max"))
    scores = [launch.window_score(emulated(), None, q_HWD, k_UTD, lse, scaling, *how, 7) for lse, *how in ways]
    return [lse_HT, sums_HT, *scores]


def test_random_orders_of_threads_and_blocks_change_no_bit() -> None:
    g = generator(9)
    first = everything(5, 13, 290)
    for _ in range(3):
        with shuffled(draw(g, 0, 10**6)):
            again = everything(5, 13, 290)
        assert all(a.equal(b) for a, b in zip(first, again, strict=True))


def test_the_kept_set_is_that_of_float64() -> None:
    """But for candidates that float64 itself tells apart by less than float32 can."""
    g = generator(10)
    other = 0
    for scope in ("head", "layer"):
        q_HWD, k_UTD, scaling = prompt(g, 4, 4, 16, 900, 128, torch.bfloat16)
        score_UN = launch.window_score(emulated(), None, q_HWD, k_UTD, None, scaling, "mean", "max", 7)
        keep_UN, _ = launch.select(emulated(), None, score_UN, 4 * 128, 0.2, scope)
        exact_UN = ops.window_score(q_HWD.double(), k_UTD.double(), None, scaling, "mean", "max", 7)
        exact_keep_UN, _ = ops.select(exact_UN, 4 * 128, 0.2, scope)
        for scores_N, ours_N, exact_N in zip(exact_UN, keep_UN, exact_keep_UN, strict=True):
            threshold = scores_N[exact_N].min()
            gap = (scores_N[ours_N != exact_N] / threshold - 1).abs()
            assert (gap < 2 * CLOSE["rtol"]).all(), f"{gap.max()} from the threshold"  # both scores may be off
            other += len(gap)
    # Pooling gives up to 7 neighbours the same score, so that they leave together. Two such exchanges are too rare.
    assert other <= 14, f"{other} of {2 * 4 * 128} kept tokens are others"


def test_what_is_not_compiled_is_refused() -> None:
    q_HTD, k_UTD = torch.zeros(2, 8, 72, dtype=torch.bfloat16), torch.zeros(1, 8, 72, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="not compiled for"):
        launch.row_lse(emulated(), None, q_HTD, k_UTD, 1.0)
    with pytest.raises(RuntimeError, match="not compiled for"):
        launch.window_score(emulated(), None, q_HTD[:, :4], k_UTD, None, 1.0, "mean", "none", 1)
    with pytest.raises(RuntimeError, match="not compiled for"):
        launch.column_sums(emulated(), None, q_HTD, k_UTD, torch.zeros(2, 8), 1.0)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("lse[head * lse_head + query] * kvb::kLog2e : INFINITY", "lse[head * lse_head + query] * kvb::kLog2e : 0.f"),
        ("return x + __shfl_xor_sync(kFullWarp, x, 2);", "return x + __shfl_xor_sync(kFullWarp, x, 1);"),
        ("key + 8 * group + 2 * c + i % 2 <= position", "key + 8 * group + 2 * c + i % 2 < position"),
        ("for (int w = 1; w < kWarps; ++w) all", "for (int w = 2; w < kWarps; ++w) all"),
    ],
)
def test_planted_bugs_in_window_score_are_found(right: str, wrong: str) -> None:
    bug = with_bug("score.cu", right, wrong)
    g = fixed_generator(11)
    shapes = [(3, 9, 120), (2, 7, 300), (4, 16, 65), (1, 33, 17)]
    assert shows(lambda: any(window_score_differs(bug, g, *shape, 64, torch.bfloat16) for shape in shapes))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("first + 8 * tile >= key + Tile<kDim>::kKeys - 1", "first + 8 * tile >= key + Tile<kDim>::kKeys - 9"),
        ("if (list.end <= key) continue;", "if (list.end <= key + 64) continue;"),
        (
            "        __syncthreads();\n        kvb::load_queries",
            "        kvb::load_queries",
        ),  # overwrites what others read
        ("sum[m][half] += of_stage[m][half];", "sum[m][half] = of_stage[m][half];"),
    ],
)
def test_planted_bugs_in_column_sums_are_found(right: str, wrong: str) -> None:
    bug = with_bug("columns.cu", right, wrong)
    g = fixed_generator(12)

    def differ(tokens: int) -> bool:
        q_HTD, k_UTD, scaling = prompt(g, 2, 2, tokens, tokens, 64, torch.bfloat16)
        lse_HT = exact_lse(q_HTD, k_UTD, scaling)
        exact_HT = ops.column_sums(q_HTD.double(), k_UTD.double(), lse_HT, scaling)
        with shuffled(1):
            sums_HT = launch.column_sums(bug, None, q_HTD, k_UTD, lse_HT.float(), scaling)
        return not sums_HT.double().allclose(exact_HT, **CLOSE)

    assert shows(lambda: any(differ(tokens) for tokens in (3, 65, 300, 420)))
