"""The common test vector TV-A and the small printed examples: first the oracles, then the package.

Query-head figures are reached through the KV-head API by giving every query head its own copy of its keys.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import kvbench
from tests.reference import allocate, h2o_decode, kivi, scores, select, tva

Q_HTD, K_UTD, V_UTD = tva.tensors()
K_HTD, V_HTD = np.repeat(K_UTD, 2, axis=0), np.repeat(V_UTD, 2, axis=0)
SCORED = tva.TOKENS - tva.WINDOW
ROUNDED = 0.6e-6  # the figures are printed with six decimals


def keep(method: str, k: np.ndarray, v: np.ndarray, budget: int = tva.BUDGET, **dials: Any) -> list[list[int]]:
    """Return the kept tokens on TV-A with its window and kernel, for the heads of `k`."""
    loaded = kvbench.load_method(method, **{"window": tva.WINDOW, **dials})
    kept = loaded.keep(torch.tensor(Q_HTD), torch.tensor(k), torch.tensor(v), budget=budget)
    return [head.tolist() for head in kept]


def plus_window(*heads: list[int]) -> list[list[int]]:
    """Return sorted selections with TV-A's window appended."""
    return [[*sorted(head), *tva.WINDOW_TOKENS] for head in heads]


# ---- the oracles against the printed figures ----


def test_attention_rows_match_the_printed_ones() -> None:
    np.testing.assert_allclose(scores.attention_rows(Q_HTD, K_UTD, 0, 15)[0], tva.ROW_0_15, atol=ROUNDED)
    np.testing.assert_allclose(scores.attention_rows(Q_HTD, K_UTD, 3, 15)[0], tva.ROW_3_15, atol=ROUNDED)


def test_window_sums_and_pooled_scores_match_the_printed_ones() -> None:
    sums_HS = scores.window_means(Q_HTD, K_UTD, tva.WINDOW) * tva.WINDOW
    np.testing.assert_allclose(sums_HS, tva.WINDOW_SUMS, atol=ROUNDED)
    np.testing.assert_allclose(scores.pool(sums_HS[0], 3, "avg"), tva.POOLED_SUM_0, atol=ROUNDED)
    grouped = scores.window_scores(Q_HTD, K_UTD, tva.WINDOW, tva.KERNEL, "avg", "mean")
    np.testing.assert_allclose(grouped[0], tva.POOLED_MEAN_KV_0, atol=ROUNDED)


def test_pooling_matches_the_printed_example() -> None:
    x = np.array([0.0, 5, 1, 0, 0, 2, 0, 3])
    assert scores.pool(x, 3, "max").tolist() == [5, 5, 5, 1, 2, 2, 3, 3]
    np.testing.assert_allclose(scores.pool(x, 3, "avg"), [5 / 3, 2, 2, 1 / 3, 2 / 3, 2 / 3, 5 / 3, 1])
    assert scores.pool(x, 3, "none").tolist() == x.tolist()


def test_column_sums_and_prefix_scores_match_the_printed_ones() -> None:
    sums_HT = scores.head_column_sums(Q_HTD, K_UTD)
    np.testing.assert_allclose(sums_HT[0, :SCORED], tva.COLUMN_SUMS_0, atol=ROUNDED)
    layer_T = scores.layer_column_sums(Q_HTD[:2], K_UTD[:1])
    np.testing.assert_allclose(layer_T, tva.PREFIX_SCORES_0, atol=ROUNDED)


def test_prefix_search_matches_the_printed_trace() -> None:
    layers = [scores.layer_column_sums(Q_HTD[i : i + 2], K_UTD[i // 2 : i // 2 + 1]) for i in (0, 2)]
    forget, target, trace = allocate.prefix_search(layers, 8, 1)
    assert target == 16 and trace == [(0.5, [11, 11]), (0.75, [8, 9])] and forget == [8, 9]
    assert allocate.prefix_reference(layers, 8, 1) == [7, 8]
    assert select.prefixkv(layers[0], 7, 1) == [0, 1, 2, 3, 4, 6, 8, 9, 15]
    assert select.prefixkv(layers[1], 8, 1) == [0, 1, 2, 3, 4, 6, 9, 15]


def test_adaptive_caps_match_the_printed_ones() -> None:
    avg = scores.window_scores(Q_HTD, K_HTD, tva.WINDOW, tva.KERNEL, "avg")
    counts = allocate.adaptive_counts(avg, 16)
    assert counts == [6, 4, 4, 2]
    caps = [allocate.adaptive_reference(counts, 4, floor) for floor in (0.0, 0.2, 0.5)]
    assert caps == [[6, 4, 4, 2], [5, 3, 3, 2], [5, 4, 4, 3]]
    assert allocate.adaptive_counts(scores.window_scores(Q_HTD, K_HTD, 3, 3, "max"), 16) == [6, 4, 6, 0]
    assert allocate.adaptive_counts(scores.window_scores(Q_HTD, K_UTD, 3, 3, "avg"), 8) == [5, 3]
    assert allocate.adaptive_reference([200, 100, 64, 20], 96, 0.2) == [179, 99, 70, 35]
    assert allocate.adaptive_reference([200, 100, 64, 20], 96, 0.5) == [148, 98, 80, 58]
    exact = allocate.largest_remainder(allocate.adaptive_real([200, 100, 64, 20], Fraction(96), 0.2), 384)
    assert exact == [179, 99, 71, 35]  # real shares 179.2, 99.2, 70.4, 35.2


PYRAMID_ROWS = [
    # budget, window, tokens, layers, cap of the first, second and last layer, sum
    (128, 8, 7500, 32, 234, 227, 17, 4016),
    (512, 8, 7500, 32, 983, 953, 53, 16576),
    (2048, 8, 7500, 32, 3978, 3853, 103, 65296),
    (2048, 8, 3000, 32, 2040, 2040, 2040, 2040 * 32),
    (64, 8, 7500, 28, 110, 106, 2, 1568),
    (128, 32, 7500, 32, 188, 183, 33, 3536),
]


@pytest.mark.parametrize("row", PYRAMID_ROWS, ids=str)
def test_pyramid_oracle_matches_the_printed_table(row: tuple[int, ...]) -> None:
    budget, window, tokens, layers, first, second, last, total = row
    caps = allocate.pyramid_reference(budget - window, 20, tokens, window, layers)
    assert [caps[0], caps[1], caps[-1], sum(caps)] == [first, second, last, total]


def test_quantiser_oracle_matches_the_printed_example() -> None:
    x = np.array([0, 0.1, 0.5, 0.9, 1, -0.2, 0.33, 0.7])
    codes, scale, low = kivi.quantise_group(x, 4)
    assert codes == [2, 4, 9, 14, 15, 0, 7, 11] and (round(scale, 6), low) == (0.08, -0.2)
    # The printed 2-bit codes take 0.0 as an exact half; x * 20 makes it one, the decimals are not exact.
    codes, scale, low = kivi.quantise_group(np.array([0.0, 2, 10, 18, 20, -4, 6.6, 14]), 2)
    assert (codes, scale, low) == ([0, 1, 2, 3, 3, 0, 1, 2], 8.0, -4.0)
    restored = kivi.restore_group(codes, scale, low) / 20
    np.testing.assert_allclose(restored, [-0.2, 0.2, 0.6, 1, 1, -0.2, 0.2, 0.6], atol=1e-12)
    assert kivi.quantise_group(np.ones(4), 2)[0] == [0, 0, 0, 0]


def test_quantised_token_oracle_follows_the_published_flow() -> None:
    # Prompt of 10, residual 4: keys leave full precision at 8 and 12 tokens, values keep the last 4.
    assert [kivi.quantised_tokens(10, n, 4) for n in (10, 11, 12, 13)] == [(8, 6), (8, 7), (12, 8), (12, 9)]
    # Shorter than, as long as, and longer than the residual.
    assert [kivi.quantised_tokens(n, n, 4) for n in (3, 4, 5, 8)] == [(0, 0), (4, 0), (4, 1), (8, 4)]
    assert [kivi.quantised_tokens(3, n, 4) for n in (4, 5, 8)] == [(4, 0), (4, 1), (8, 4)]


def test_h2o_decode_oracle_matches_the_printed_example() -> None:
    rows = [[1.0], [0.6, 0.4], [0.2, 0.5, 0.3], [0.1, 0.2, 0.3, 0.4]]
    attended: dict[tuple[int, ...], list[float]] = {(0, 2, 3, 4): [0.4, 0.1, 0.2, 0.3]}
    states = h2o_decode.decode(rows, lambda positions: attended[tuple(positions)], 1, heavy=1, recent=2)
    assert [positions for positions, _ in states] == [[0, 2, 3], [0, 3, 4]]
    np.testing.assert_allclose(states[0][1], [1.9, 0.6, 0.4])
    np.testing.assert_allclose(states[1][1], [2.3, 0.6, 0.3])


# ---- the package on the same vector ----


def test_streaming_llm_keeps_sinks_and_the_latest() -> None:
    x = torch.zeros(1, 10, 4)
    kept = kvbench.load_method("streaming_llm", sinks=4).keep(x, x, x, budget=7)
    assert kept[0].tolist() == [0, 1, 2, 3, 7, 8, 9]


@pytest.mark.parametrize("method", ["h2o", "h2o_decode"])
def test_h2o_is_causal_and_reduces_over_the_group(method: str) -> None:
    # A mask that is not causal would give {1, 3, 4, 8} and {2, 4, 5, 12}.
    per_query_head = keep(method, K_HTD, V_HTD)
    assert per_query_head == plus_window([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 3, 4])
    for reduce in ("mean", "sum", "max"):
        sums = scores.column_sums(Q_HTD, K_UTD, reduce)
        assert keep(method, K_UTD, V_UTD, reduce=reduce) == select.h2o(sums, tva.WINDOW, 4)


SNAPKV_CASES = [
    ("query", "avg", "mean", ([1, 0, 5, 4], [8, 1, 0, 2], [1, 0, 5, 4], [8, 10, 1, 2])),
    ("kv", "avg", "mean", ([1, 0, 2, 8], [8, 1, 0, 2])),
    ("kv", "avg", "max", ([1, 8, 0, 5], [8, 1, 5, 4])),
    ("query", "max", "mean", ([3, 4, 5, 0], [0, 1, 2, 8], [3, 4, 5, 0], [0, 1, 2, 8])),
    ("kv", "max", "mean", ([0, 1, 2, 3], [0, 1, 2, 3])),
    ("kv", "max", "max", ([3, 4, 5, 0], [3, 4, 5, 0])),
]


@pytest.mark.parametrize(("heads", "pooling", "reduce", "expected"), SNAPKV_CASES)
def test_snapkv_keeps_the_printed_tokens(
    heads: str, pooling: str, reduce: str, expected: tuple[list[int], ...]
) -> None:
    k, v = (K_HTD, V_HTD) if heads == "query" else (K_UTD, V_UTD)
    # Sorted scores are stable: the lower index first, which settles the plateaus of max pooling.
    pooled = {} if pooling == "none" else {"kernel_size": tva.KERNEL}
    dials: dict[str, Any] = {"pooling": pooling, "reduce": reduce, **pooled}
    assert keep("snapkv", k, v, **dials) == plus_window(*expected)
    naive = scores.window_scores(Q_HTD, k, tva.WINDOW, tva.KERNEL, pooling, reduce)
    assert select.snapkv(naive, tva.TOKENS, tva.WINDOW, 4) == plus_window(*expected)


ADA_CASES = [
    ("query", "avg", 0.0, ([0, 1, 2, 3, 4, 5], [0, 1, 2, 8], [0, 1, 4, 5], [8, 10])),
    ("query", "avg", 0.2, ([0, 1, 3, 4, 5], [0, 1, 8], [0, 1, 5], [8, 10])),
    ("query", "avg", 0.5, ([0, 1, 3, 4, 5], [0, 1, 2, 8], [0, 1, 4, 5], [1, 8, 10])),
    ("kv", "avg", 0.2, ([0, 1, 2, 8], [1, 8])),
    ("kv", "avg", 0.5, ([0, 1, 2, 8], [0, 1, 2, 8])),
]


@pytest.mark.parametrize(("heads", "pooling", "floor", "expected"), ADA_CASES)
def test_ada_snapkv_reference_allocation_keeps_the_printed_tokens(
    heads: str, pooling: str, floor: float, expected: tuple[list[int], ...]
) -> None:
    k, v = (K_HTD, V_HTD) if heads == "query" else (K_UTD, V_UTD)
    dials: dict[str, Any] = {
        "kernel_size": tva.KERNEL,
        "pooling": pooling,
        "floor": floor,
        "normalize": False,
    }
    assert keep("ada_snapkv", k, v, allocation="reference", **dials) == plus_window(*expected)
    total = sum(len(head) for head in keep("ada_snapkv", k, v, allocation="exact", **dials))
    assert total == tva.BUDGET * len(k)


def test_ada_snapkv_max_pool_lengths() -> None:
    dials: dict[str, Any] = {
        "kernel_size": 3,
        "pooling": "max",
        "floor": 0.5,
        "normalize": False,
        "allocation": "reference",
    }
    assert [len(head) for head in keep("ada_snapkv", K_HTD, V_HTD, **dials)] == [8, 7, 8, 5]


@pytest.mark.parametrize("row", PYRAMID_ROWS, ids=str)
def test_pyramidkv_reference_allocation_keeps_the_printed_numbers(row: tuple[int, ...]) -> None:
    budget, window, tokens, layers, first, second, last, total = row
    rng = np.random.default_rng(tokens + budget)
    q, k, v = (torch.tensor(rng.normal(size=(1, tokens, 2))) for _ in range(3))
    method = kvbench.load_method("pyramidkv", window=window, beta=20, allocation="reference")
    exact = kvbench.load_method("pyramidkv", window=window, beta=20, allocation="exact")

    def selected(which: Any, layer: int) -> int:
        return len(which.keep(q, k, v, budget=budget, layer=layer, num_layers=layers)[0]) - window

    caps = [selected(method, layer) for layer in range(layers)]
    assert [caps[0], caps[1], caps[-1], sum(caps)] == [first, second, last, total]
    assert sum(selected(exact, layer) for layer in range(layers)) == (budget - window) * layers


def test_prefixkv_reference_allocation_keeps_the_printed_tokens() -> None:
    method = kvbench.load_method("prefixkv", sinks=1, window=1, allocation="reference")
    heads = [(slice(0, 2), slice(0, 1)), (slice(2, 4), slice(1, 2))]
    layers = [(torch.tensor(Q_HTD[h]), torch.tensor(K_UTD[u]), torch.tensor(V_UTD[u])) for h, u in heads]
    kept = method.keep_layers(layers, budget=8)
    assert [head.tolist() for layer in kept for head in layer] == [
        [0, 1, 2, 3, 4, 6, 8, 9, 15],
        [0, 1, 2, 3, 4, 6, 9, 15],
    ]


@pytest.mark.parametrize("method", ["fullkv", "kivi"])
def test_full_precision_and_quantised_methods_keep_everything(method: str) -> None:
    q, k, v = torch.tensor(Q_HTD), torch.tensor(K_UTD), torch.tensor(V_UTD)
    kept = kvbench.load_method(method).keep(q, k, v, budget=tva.BUDGET)
    assert [head.tolist() for head in kept] == [list(range(tva.TOKENS))] * tva.NUM_KV_HEADS
