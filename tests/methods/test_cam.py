"""CaM after the prefill: the kept tokens, and the values that were handed on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import kvbench
from kvbench.methods.context import LayerContext
from kvbench.methods.merge.forward import ValuesForward
from kvbench.methods.prompt_facts import PromptFacts
from kvbench.methods.scores.window_mean import WindowMean
from tests.reference import cam, scores, select
from tests.reference.cases import draw


@pytest.mark.parametrize("seed", range(12))
def test_kept_tokens_are_those_of_snapkv_without_pooling(seed: int) -> None:
    case = draw(8600 + seed)
    if case.budget >= case.tokens:
        return
    (kept,) = case.keep(kvbench.load_method("cam", window=case.window), case.budget)
    (q, k, _), window = case.layers[0], case.window
    expected_UN = scores.reduce_groups(scores.window_means(q, k, window, case.scaling), len(k), "mean")
    for head, score_N in zip(kept, expected_UN, strict=True):
        chosen = [token for token in head.tolist() if token < case.tokens - window]
        assert select.explain_mismatch(chosen, score_N[: case.tokens - window], case.budget - window, 1e-9) is None


@pytest.mark.parametrize("givers", ["all", "dropped"])
@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("seed", range(8))
def test_values_are_those_of_the_naive_twin(seed: int, reduce: str, givers: str) -> None:
    rng = np.random.default_rng(seed)
    group, heads, tokens, window = 1 + seed % 3, int(rng.integers(1, 4)), int(rng.integers(4, 60)), 1 + seed % 7
    q = torch.tensor(rng.normal(size=(heads * group, tokens, 6)) * 2)
    k, v = (torch.tensor(rng.normal(size=(heads, tokens, 6))) for _ in range(2))
    part = ValuesForward(window, start=(0.1, 0.0, 1.0)[seed % 3] if seed < 6 else 0.1, reduce=reduce, givers=givers)
    ctx, keep_UT = LayerContext(q, k, v, facts=PromptFacts(seed=seed)), torch.tensor(rng.random((heads, tokens)) < 0.4)
    keys, values = part(ctx, keep_UT)
    draw_UT = torch.rand(heads, tokens, generator=ctx.generator(part))
    assert torch.equal(keys, k) and ctx.v is v
    queries = min(window, tokens)
    for u in range(heads):
        of_group = [_attention(q[u * group + g], k[u], queries) for g in range(group)]
        rows = np.mean(of_group, 0) if reduce == "mean" else np.max(of_group, 0)
        gives = [givers == "all" or not kept for kept in keep_UT[u].tolist()]
        start = math.ceil(part.start * tokens)
        twin = cam.forward(rows.mean(0).tolist(), v[u].tolist(), window, start, draw_UT[u].tolist(), gives)
        torch.testing.assert_close(values[u], torch.tensor(twin, dtype=torch.float64))


def _attention(q_TD: torch.Tensor, k_TD: torch.Tensor, queries: int) -> np.ndarray:
    """Return the causal attention of the last queries of one head."""
    tokens = len(k_TD)
    logits = q_TD[tokens - queries :] @ k_TD.T * q_TD.shape[1] ** -0.5
    logits += torch.full_like(logits, -torch.inf).triu(tokens - queries + 1)
    return logits.softmax(-1).numpy()


def test_merging_changes_values_and_nothing_else_and_follows_the_seed() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 4, 80, 8, generator=g).unbind()
    keep_UT = torch.ones(4, 80).bool()
    merged = [ValuesForward()(LayerContext(q, k, v, facts=PromptFacts(seed=seed)), keep_UT)[1] for seed in (0, 0, 1)]
    assert torch.equal(merged[0], merged[1]) and not torch.equal(merged[0], merged[2])
    assert not torch.equal(merged[0], v) and torch.equal(merged[0][:, :8], v[:, :8]), "0.1 of 80 give and get nothing"


@pytest.mark.parametrize("window", [10, 11, 50])
def test_a_window_as_long_as_the_prompt_takes_every_query(window: int) -> None:
    q, k, v = torch.randn(3, 2, 10, 8, generator=torch.Generator().manual_seed(3)).unbind()
    ctx = LayerContext(q, k, v)
    torch.testing.assert_close(ctx.score(WindowMean(window)), ctx.column_sums() / 10)
