"""Elastic Cache: the kept tokens, and the merge of the dropped ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kvbench
from kvbench.methods.context import LayerContext
from kvbench.methods.merge.nearest import ToNearest
from tests.reference import elastic, select
from tests.reference.cases import draw
from tests.reference.scores import layer_column_sums


@pytest.mark.parametrize("seed", range(12))
def test_kept_tokens_are_the_heavy_ones_of_the_layer(seed: int) -> None:
    case = draw(9400 + seed)
    sinks, window = seed % 3, seed % 2 + 1
    budget = max(case.budget, sinks + window + 1)
    if budget >= case.tokens:
        return
    kept = case.keep(kvbench.load_method("elastic_cache", sinks=sinks, window=window), budget)[0]
    scores_N = layer_column_sums(*case.layers[0][:2], scaling=case.scaling)[sinks : case.tokens - window]
    for head in kept:
        chosen = [token - sinks for token in head.tolist() if sinks <= token < case.tokens - window]
        assert select.explain_mismatch(chosen, scores_N, budget - sinks - window, 1e-9) is None
        assert len(head) == budget and head.tolist() == kept[0].tolist()


@pytest.mark.parametrize("into", ["selected", "kept"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(12))
def test_the_merge_is_that_of_the_naive_twin(seed: int, dtype: torch.dtype, into: str) -> None:
    rng = np.random.default_rng(seed)
    heads, tokens, dim = int(rng.integers(1, 4)), int(rng.integers(4, 60)), 6
    sinks, window = int(rng.integers(0, 3)), int(rng.integers(0, 2))
    k, v = (torch.tensor(rng.normal(size=(heads, tokens, dim))).to(dtype) for _ in range(2))
    keep_UT = torch.tensor(rng.random((heads, tokens)) < rng.random())
    keep_UT[:, :sinks] = True
    keep_UT[:, tokens - window :] = True
    ctx = LayerContext(k, k, v)
    merged = ToNearest(into, sinks, window)(ctx, keep_UT)
    for got, x in zip(merged, (k, v), strict=True):
        assert got.dtype == dtype and got.shape == x.shape
        for u in range(heads):
            kept = keep_UT[u].nonzero().flatten().tolist()
            twin = elastic.merged(x[u].double().numpy(), kept, sinks, window, into)
            tolerance = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 0.02}[dtype]
            np.testing.assert_allclose(got[u, kept].double().numpy(), twin[kept], atol=tolerance)


def test_an_equally_near_token_joins_the_earlier_one_and_ends_stay_as_they_are() -> None:
    x = torch.arange(9.0).view(1, 9, 1)
    keep_UT = torch.tensor([[True, False, False, True, False, True, False, False, True]])
    k, _ = ToNearest("selected", sinks=1, window=1)(LayerContext(x, x, x), keep_UT)
    # 1 and 2 join 3 (the sink takes none), 4 lies between 3 and 5, 6 and 7 join 5
    assert k[0, keep_UT[0], 0].tolist() == [0, (1 + 2 + 3 + 4) / 4, (5 + 6 + 7) / 3, 8]
    k, _ = ToNearest("kept")(LayerContext(x, x, x), keep_UT)
    assert k[0, keep_UT[0], 0].tolist() == [0.5, 3, 5.5, 7.5]
