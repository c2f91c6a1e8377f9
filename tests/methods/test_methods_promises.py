"""The promises of every method: exact totals, short prompts untouched, no memory, ties to the lower index.

Methods are collected from conf/method/ by what they have: a new one is tested without being listed here.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import kvbench
from kvbench.methods.method import Method
from tests.helpers.methods import evicting, facts, measured, shipped, with_dial
from tests.helpers.methods import load as load_for
from tests.reference import allocate, scores, select
from tests.reference.cases import Case, draw


def load(name: str, case: Case, window: int, **dials: Any) -> Method:
    """Return the method for the case's model with its own defaults, but for a window that fits small prompts."""
    if name in with_dial("window"):
        dials["window"] = window
    return load_for(name, len(case.layers), len(case.layers[0][0]), **dials)


def protected(method: Method, tokens: int) -> int:
    """Return how many tokens of each head the method always keeps."""
    assert method.eviction is not None
    return method.eviction.select.protected(tokens).total


def total(kept: list[list[torch.Tensor]]) -> int:
    """Count the kept tokens over all layers and KV heads."""
    return sum(len(head) for layer in kept for head in layer)


@pytest.mark.parametrize("method", evicting())
@pytest.mark.parametrize("seed", range(8))
def test_totals_are_exact_for_tokens_and_for_fractions(seed: int, method: str) -> None:
    case = draw(600 + seed, num_layers=seed + 1)
    window = min(case.window, case.tokens - 6)
    rng = np.random.default_rng(seed)
    loaded = load(method, case, window)
    budget = int(rng.integers(max(window, protected(loaded, 1)) + 1, case.tokens))
    promised = budget * case.heads * len(case.layers)
    assert total(case.keep(loaded, budget)) == promised
    # The same number as a fraction, although budget / tokens * tokens may fall a hair short of it.
    assert total(case.keep(loaded, budget / case.tokens)) == promised
    # A fraction between two whole numbers counts the tokens it covers.
    assert total(case.keep(loaded, (budget + 0.6) / case.tokens)) == promised


@pytest.mark.parametrize("tokens", [100, 50, 200, 400])
def test_every_percent_of_a_round_length_is_a_whole_number(tokens: int) -> None:
    x = torch.zeros(1, tokens, 4)
    method = kvbench.load_method("streaming_llm", sinks=0)
    for percent in range(100 // tokens + 1, 101):
        assert len(method.keep(x, x, x, budget=percent / 100)[0]) == math.floor(percent * tokens / 100)


@pytest.mark.parametrize("method", [name for name in shipped() if name not in measured()])
@pytest.mark.parametrize("tokens", [1, 2, 9, 40])
def test_a_prompt_within_the_budget_is_left_alone(tokens: int, method: str) -> None:
    x = torch.tensor(np.random.default_rng(tokens).normal(size=(2, tokens, 8)))
    loaded = load_for(method, 3, 2)
    always_kept = tokens < 10 and loaded.decoding is not None  # a share of so short a prompt may be less than that
    for budget in (40, 1000) if always_kept else (40, 1000, 1.0):
        kept = loaded.keep(x, x, x, budget=budget, layer=1, num_layers=3, **facts(loaded, x, x))
        assert all(head.dtype == torch.long for head in kept)
        assert [head.tolist() for head in kept] == [list(range(tokens))] * 2


@pytest.mark.parametrize("sinks", [1, 3])
@pytest.mark.parametrize("method", with_dial("sinks"))
def test_sinks_count_in_the_budget_and_stay(method: str, sinks: int) -> None:
    for seed in range(4):
        case = draw(700 + seed, num_layers=3)
        window = min(case.window, case.tokens - 6)
        budget = (window + sinks + case.tokens) // 2
        loaded = load(method, case, window, sinks=sinks)
        kept = case.keep(loaded, budget)
        if loaded.promises == "kept":
            assert total(kept) == budget * case.heads * 3
        for head in (head for layer in kept for head in layer):
            assert head[:sinks].tolist() == list(range(sinks))
            assert loaded.probe is not None or loaded.promises is None or int(head[-1]) == case.tokens - 1


@pytest.mark.parametrize("allocation", ["reference", "exact"])
@pytest.mark.parametrize("method", with_dial("allocation"))
def test_a_prompt_does_not_depend_on_the_one_before(method: str, allocation: str) -> None:
    second = draw(13, num_layers=4)
    others = (draw(seed, num_layers=4) for seed in range(100))
    first = next(case for case in others if len(case.layers[0][0]) == len(second.layers[0][0]))
    window = min(first.window, second.window)
    used, fresh = (load(method, case, window, allocation=allocation) for case in (second, second))
    first.keep(used)
    again, alone = (second.keep(m) for m in (used, fresh))
    for a, b in zip(again, alone, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("method", evicting())
def test_inputs_are_not_written_to(method: str) -> None:
    case = draw(21)
    q, k, v = case.torch_layer(0)
    before = [x.clone() for x in (q, k, v)]
    loaded = load(method, case, case.window)
    loaded.keep(q, k, v, budget=max(case.budget, 6), **facts(loaded, q, k))
    assert all(torch.equal(a, b) for a, b in zip((q, k, v), before, strict=True))


@pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
@pytest.mark.parametrize("method", sorted({*with_dial("reduce")} & {*evicting()}))
def test_query_heads_score_the_kv_head_of_their_own_group(method: str, reduce: str) -> None:
    # Head h has its one peak at token 2 * h + 1; KV head h // 2 must keep it before all others.
    heads, tokens, window = 6, 24, 4
    k_UTD = torch.zeros(3, tokens, tokens)
    k_UTD[:, range(tokens), range(tokens)] = 1.0
    q_HTD = torch.zeros(heads, tokens, tokens)
    for h in range(heads):
        q_HTD[h, :, 2 * h + 1] = 60.0
    dials = {"kernel_size": 1} if method in with_dial("kernel_size") else {}
    loaded = load_for(method, 1, heads, window=window, reduce=reduce, **dials)
    kept = loaded.keep(q_HTD, k_UTD, k_UTD, budget=window + 2, scaling=1.0, **facts(loaded, q_HTD, k_UTD))
    assert sum(len(head) for head in kept) == 3 * (window + 2)
    for u, head in enumerate(kept):
        chosen, peaks = {*head.tolist()} - {*range(tokens - window, tokens)}, {4 * u + 1, 4 * u + 3}
        assert chosen >= peaks if len(chosen) >= 2 else chosen <= peaks


# ---- ties: exact equals, made from values that add and multiply without rounding ----


def tied_prompt(kind: str, seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q and k whose logits repeat exactly: no queries, one key for all, or few whole-numbered keys."""
    rng = np.random.default_rng(seed)
    heads, group, tokens = int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(30, 90))
    q = rng.integers(-2, 3, size=(heads * group, tokens, 4))
    k = rng.integers(0, 2, size=(heads, tokens, 4))
    if kind == "zero queries":
        q = q * 0
    if kind == "constant keys":
        k = k * 0 + 1
    return torch.tensor(q, dtype=dtype), torch.tensor(k, dtype=dtype)


TIED = ["zero queries", "constant keys", "whole-numbered keys"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("pooling", ["max", "none"])
@pytest.mark.parametrize("window", [2, 8])
@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("seed", range(4))
def test_ties_go_to_the_lower_index(seed: int, kind: str, window: int, pooling: str, dtype: torch.dtype) -> None:
    # Two queries test the selection alone: a sum of two is the same in any order. With eight, equal columns
    # must also be summed in one order, wherever they lie; otherwise the last bit decides, not the index.
    q, k = tied_prompt(kind, seed, dtype)
    tokens = k.shape[1]
    budget = window + (tokens - window) // 3
    pooled = {} if pooling == "none" else {"kernel_size": 3}
    method = kvbench.load_method("snapkv", window=window, pooling=pooling, reduce="max", **pooled)
    kept = method.keep(q, k, k, budget=budget, scaling=0.5)
    expected = scores.window_scores(q.numpy(), k.numpy(), window, 3, pooling, "max", scaling=0.5)
    rtol = select.RTOL[str(dtype).removeprefix("torch.")]
    for head, row in zip(kept, expected, strict=True):
        problem = select.explain_tie_order(head.tolist()[: len(head) - window], row, budget - window, rtol)
        assert problem is None, problem


@pytest.mark.parametrize("kind", ["zero queries", "constant keys"])
@pytest.mark.parametrize("allocation", ["reference", "exact"])
def test_heads_that_tie_everywhere_are_filled_in_order(allocation: str, kind: str) -> None:
    # Every score is equal, so the flattened top-k runs through head 0, then head 1, and so on.
    q, k = tied_prompt(kind, 3, torch.float64)
    heads, tokens, window, base = k.shape[0], k.shape[1], 8, 9
    dials = {"window": window, "kernel_size": 3, "pooling": "max", "floor": 0.5, "normalize": False}
    method = kvbench.load_method("ada_snapkv", allocation=allocation, **dials)
    kept = method.keep(q, k, k, budget=base + window, scaling=0.5)
    counts = allocate.adaptive_counts(np.ones((heads, tokens - window)), base * heads)
    caps = {
        "reference": allocate.adaptive_reference(counts, base, 0.5),
        "exact": allocate.largest_remainder(allocate.adaptive_real(counts, Fraction(base), 0.5), base * heads),
    }[allocation]
    window_tokens = list(range(tokens - window, tokens))
    assert [head.tolist() for head in kept] == [[*range(cap), *window_tokens] for cap in caps]


def test_h2o_with_equal_attention_prefers_early_tokens() -> None:
    # Uniform rows: a token's column sum falls with its position, and no two are equal.
    q, k = tied_prompt("zero queries", 5, torch.float64)
    kept = kvbench.load_method("h2o", window=4).keep(q, k, k, budget=10)
    tokens = k.shape[1]
    assert [head.tolist() for head in kept] == [[*range(6), *range(tokens - 4, tokens)]] * k.shape[0]
