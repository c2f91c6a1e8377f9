"""Every method against its naive re-implementation on random prompts."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

import kvbench
from tests.reference import allocate, scores, select
from tests.reference.cases import Case, draw

FLOORS = [0.0, 0.2, 0.5, 1.0]
DTYPES = ["float64", "float32"]


def as_lists(kept: list[torch.Tensor], tokens: int, window: int = 0) -> list[list[int]]:
    """Check the form of a result (dtype, order, range, window present) and return it as lists."""
    for head in kept:
        assert head.dtype == torch.long and head.dim() == 1
        assert bool((head[1:] > head[:-1]).all()), "not strictly ascending"
        assert int(head[0]) >= 0 and int(head[-1]) < tokens
        assert head[len(head) - window :].tolist() == list(range(tokens - window, tokens)), "window not kept"
    return [head.tolist() for head in kept]


def check_heads(
    case: Case, kept: list[torch.Tensor], scores_US: np.ndarray, counts: list[int], strict: bool = False
) -> None:
    """Check that every head keeps the window and its `counts[u]` best tokens before it, up to ties.

    `strict` also demands the lower index among ties; not for avg pooling, whose sums differ by rounding.
    """
    lists = as_lists(kept, case.tokens, case.window)
    assert len(lists) == case.heads == len(counts)
    for head, row, count in zip(lists, scores_US, counts, strict=True):
        explain = select.explain_tie_order if strict else select.explain_mismatch
        problem = explain(
            head[: len(head) - case.window], row[: case.tokens - case.window], count, select.RTOL[case.dtype]
        )
        assert problem is None, f"{problem} in {case.dials}, window {case.window}, budget {case.budget}"


def clear_cut(scores_US: np.ndarray, picks: int) -> bool:
    """Return True if no near-tie in float32 between different heads decides how many tokens each head gets."""
    ordered = np.sort(scores_US.ravel())[::-1]
    if picks >= len(ordered):
        return True
    near = np.abs(scores_US - ordered[picks - 1]) <= 1e-5 * ordered[picks - 1]
    return near.any(axis=1).sum() == 1


def lengths(kept: list[list[torch.Tensor]], window: int) -> list[list[int]]:
    """Return the tokens selected in addition to the window, per layer and KV head."""
    return [[len(head) - window for head in layer] for layer in kept]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(40))
def test_snapkv(seed: int, dtype: str) -> None:
    case = draw(seed, dtype=dtype)
    kept = case.keep(kvbench.load_method("snapkv", window=case.window, **case.dials))[0]
    strict = dtype == "float64" and case.dials["pooling"] != "avg"
    check_heads(case, kept, case.window_scores(0), [case.base] * case.heads, strict=strict)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["h2o", "h2o_decode"])
@pytest.mark.parametrize("seed", range(16))
def test_h2o(seed: int, method: str, dtype: str) -> None:
    case = draw(100 + seed, dtype=dtype)
    kept = case.keep(kvbench.load_method(method, window=case.window, reduce=case.dials["reduce"]))[0]
    check_heads(case, kept, case.column_sums(0), [case.base] * case.heads, strict=dtype == "float64")


@pytest.mark.parametrize("seed", range(30))
def test_streaming_llm(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens, heads = int(rng.integers(1, 400)), int(rng.integers(1, 4))
    sinks = int(rng.integers(0, 9))
    budget = int(rng.integers(sinks + 1, sinks + 200))
    x = torch.tensor(rng.normal(size=(heads, tokens, 4)))
    kept = kvbench.load_method("streaming_llm", sinks=sinks).keep(x, x, x, budget=budget)
    assert as_lists(kept, tokens) == [select.streaming(tokens, budget, sinks)] * heads


@pytest.mark.parametrize("beta", [2, 7, 20])
@pytest.mark.parametrize("allocation", ["reference", "exact"])
@pytest.mark.parametrize("seed", range(8))
def test_pyramidkv(seed: int, allocation: str, beta: int) -> None:
    case = draw(200 + seed, num_layers=seed % 8 + 1)
    method = kvbench.load_method("pyramidkv", window=case.window, beta=beta, allocation=allocation, **case.dials)
    kept = case.keep(method)
    got = lengths(kept, case.window)
    size = (case.base, beta, case.tokens, case.window, len(case.layers))
    if allocation == "reference":
        assert got == [[cap] * case.heads for cap in allocate.pyramid_reference(*size)]
    else:
        flat = [x for layer in got for x in layer]
        real = [x for x in allocate.pyramid_real(*size) for _ in range(case.heads)]
        assert allocate.is_largest_remainder(flat, real, case.base * len(flat)), (got, real)
    for layer, heads in enumerate(kept):
        strict = case.dials["pooling"] != "avg"
        check_heads(case, heads, case.window_scores(layer), got[layer], strict=strict)


@pytest.mark.parametrize("allocation", ["reference", "exact"])
def test_pyramidkv_is_uniform_below_twice_the_selected_tokens(allocation: str) -> None:
    method = kvbench.load_method("pyramidkv", window=4, beta=20, allocation=allocation)
    for tokens, caps in ((39, [20, 20, 20]), (40, [36, 20, 4])):  # 20 selected, 36 at most at 40 tokens
        x = torch.randn(1, tokens, 4, generator=torch.Generator().manual_seed(0))
        kept = [method.keep(x, x, x, budget=24, layer=layer, num_layers=3)[0] for layer in range(3)]
        assert [len(head) - 4 for head in kept] == caps


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(24))
def test_ada_snapkv(seed: int, dtype: str, normalize: bool) -> None:
    floor, picks = FLOORS[seed % 4], 0
    for attempt in range(20):
        case = draw(300 + seed + 1000 * attempt, dtype=dtype)
        scores_US, picks = case.window_scores(0), case.base * case.heads
        pooled = allocate.normalised(scores_US, case.base) if normalize else scores_US
        if clear_cut(pooled, picks):
            break
    counts = allocate.adaptive_counts(pooled, picks)
    dials = {"window": case.window, "floor": floor, "normalize": normalize, **case.dials}

    kept = case.keep(kvbench.load_method("ada_snapkv", allocation="reference", **dials))[0]
    check_heads(case, kept, scores_US, allocate.adaptive_reference(counts, case.base, floor))

    kept = case.keep(kvbench.load_method("ada_snapkv", allocation="exact", **dials))[0]
    caps = lengths([kept], case.window)[0]
    real = allocate.adaptive_real(counts, Fraction(case.base), floor)
    assert allocate.is_largest_remainder(caps, real, picks), (caps, real)
    if floor in (0.0, 0.5, 1.0):  # exact in binary, so ties are true ties
        assert caps == allocate.largest_remainder(real, picks)
    check_heads(case, kept, scores_US, caps)


@pytest.mark.parametrize("seed", range(0, 60, 2))
def test_ada_snapkv_normalises_by_the_best_of_an_even_split(seed: int) -> None:
    # Two selected tokens per head on short prompts: here one more or less in the even split shows.
    case = draw(900 + seed, max_tokens=40)
    case = Case(**{**vars(case), "budget": min(case.window + 2, case.tokens - 1)})
    dials = {"window": case.window, "floor": 0.0, "normalize": True, **case.dials}
    kept = case.keep(kvbench.load_method("ada_snapkv", **dials))[0]
    scores_US = case.window_scores(0)
    pooled = allocate.normalised(scores_US, case.base)
    check_heads(case, kept, scores_US, allocate.adaptive_counts(pooled, case.base * case.heads))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("allocation", ["reference", "exact"])
def test_ada_snapkv_gives_a_head_without_mass_its_floor_only(allocation: str, normalize: bool) -> None:
    # Head 0 looks at the window alone, so all its scores are 0; its share of mass must not become 0 / 0.
    q, k = (torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    q[0], k[0], k[0, -4:] = 100.0, -100.0, 100.0
    dials = {"window": 4, "kernel_size": 1, "floor": 0.5, "normalize": normalize, "allocation": allocation}
    kept = kvbench.load_method("ada_snapkv", **dials).keep(q, k, k, budget=14)
    assert [len(head) - 4 for head in kept] == [5, 15]


@pytest.mark.parametrize("seed", range(20))
def test_ada_pyramidkv(seed: int) -> None:
    floor, beta = FLOORS[seed % 4], [2, 7, 20][seed % 3]
    case = draw(400 + seed, num_layers=seed % 8 + 1)
    size = (case.base, beta, case.tokens, case.window, len(case.layers))
    dials = {"window": case.window, "floor": floor, "beta": beta, "normalize": False, **case.dials}

    kept = case.keep(kvbench.load_method("ada_pyramidkv", allocation="reference", **dials))
    bases = allocate.pyramid_reference(*size, middle=False)
    for layer, heads in enumerate(kept):
        scores_US = case.window_scores(layer)
        counts = allocate.adaptive_counts(scores_US, bases[layer] * case.heads)
        check_heads(case, heads, scores_US, allocate.adaptive_reference(counts, bases[layer], floor))

    kept = case.keep(kvbench.load_method("ada_pyramidkv", allocation="exact", **dials))
    got = lengths(kept, case.window)
    assert sum(map(sum, got)) == case.base * case.heads * len(case.layers)
    for layer, (heads, real) in enumerate(zip(kept, allocate.pyramid_real(*size, middle=False), strict=True)):
        picks, scores_US = sum(got[layer]), case.window_scores(layer)
        assert abs(picks - real * case.heads) <= case.heads
        counts = allocate.adaptive_counts(scores_US, picks)
        shares = allocate.adaptive_real(counts, Fraction(picks, case.heads), floor)
        assert allocate.is_largest_remainder(got[layer], shares, picks), (got[layer], shares)
        check_heads(case, heads, scores_US, got[layer])


def prefix_layer(case: Case, allocation: str, start: int) -> list[list[list[int]]]:
    """Return the kept tokens of prefixkv for every layer of a case."""
    method = kvbench.load_method("prefixkv", sinks=start, window=1, allocation=allocation)
    return [as_lists(heads, case.tokens, 1) for heads in case.keep(method)]


@pytest.mark.parametrize("start", [1, 4])
@pytest.mark.parametrize("seed", range(16))
def test_prefixkv(seed: int, start: int) -> None:
    case = draw(500 + seed, num_layers=seed % 8 + 1, max_tokens=80)
    case = Case(**{**vars(case), "budget": max(case.budget, start + 2)})
    stats = [scores.layer_column_sums(q, k, case.scaling) for q, k, _ in case.layers]
    most = case.tokens - start - 1
    dropped = [min(x, most) for x in allocate.prefix_reference(stats, case.budget, start)]
    for layer, heads in enumerate(prefix_layer(case, "reference", start)):
        assert heads == [select.prefixkv(stats[layer], dropped[layer], start)] * case.heads

    exact = prefix_layer(case, "exact", start)
    assert sum(len(head) for heads in exact for head in heads) == case.budget * case.heads * len(stats)
    real = allocate.prefix_real(stats, case.budget, start)
    for layer, heads in enumerate(exact):
        drop = case.tokens - len(heads[0])
        assert heads == [select.prefixkv(stats[layer], drop, start)] * case.heads
        # Otherwise the search found nothing to scale, or what a full layer cannot drop moves elsewhere.
        if sum(real) > 0 and all(x <= most for x in real):
            assert abs(drop - real[layer]) < 1


@pytest.mark.parametrize("allocation", ["reference", "exact"])
@pytest.mark.parametrize("tokens", [60, 120, 200])
def test_prefixkv_layers_with_equal_importance_keep_equally(tokens: int, allocation: str) -> None:
    # Every layer drops exactly N - budget: a quotient without remainder must not be truncated below itself.
    method = kvbench.load_method("prefixkv", sinks=1, window=1, allocation=allocation)
    importance = torch.tensor(np.random.default_rng(3).exponential(size=tokens) ** 2)
    for budget in range(4, tokens - 5, 5):
        totals = method.layer_totals(budget, span=tokens, layers=2, heads=1, query_heads=1, statistics=[importance] * 2)
        assert totals == [budget] * 2
