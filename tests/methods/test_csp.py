"""CSP: the printed scores and tokens, a naive twin, overlapping choices, and prompts with one region."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kvbench
from kvbench.methods.context import LayerContext
from kvbench.methods.method import Method
from kvbench.methods.prompt_facts import PromptFacts
from kvbench.methods.scores.regions import RegionAttention
from tests.reference import csp, tva
from tests.reference.cases import Case, draw

WITHIN_0 = tva._numbers(".188557 .826725 .002106 .000608 0 0 0 0 0 0 .001648 .027069 .204463")
ACROSS_0 = tva._numbers("0 0 0 0 .925452 .002910 .006764 .239522 .000575 .390936 0 0 0")
SPANS = {"context": (0, 4), "question": (4, 10)}  # the printed example has its other region in the middle


def load(**dials: object) -> Method:
    return kvbench.load_method("csp", **({"window": 3} | dials))


def regions(case: Case, asked: int) -> dict[str, tuple[int, int]]:
    border = case.tokens - asked
    return {"context": (0, border), "question": (border, case.tokens)}


def test_the_printed_scores_and_tokens() -> None:
    q, k, v = map(torch.tensor, tva.tensors())
    ctx = LayerContext(q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0), facts=PromptFacts(spans=SPANS))
    within, across = (ctx.score(RegionAttention(3 / 16, across=which)) for which in (False, True))
    np.testing.assert_allclose(within[0, :13], WITHIN_0, atol=0.6e-6)
    np.testing.assert_allclose(across[0, :13], ACROSS_0, atol=0.6e-6)
    best = within[:, :13].argsort(dim=-1, descending=True, stable=True)[:, :3].tolist()
    assert best == [[1, 12, 0], [1, 11, 12], [1, 12, 0], [1, 11, 2]]
    assert across.argmax(-1).tolist() == [4, 9, 4, 9]
    twin = csp.region_scores(q.numpy(), k.numpy(), [4 <= j < 10 for j in range(16)], 3, 0.5)
    for ours, naive in zip((within, across), twin, strict=True):
        np.testing.assert_allclose(ours, naive, rtol=1e-9, atol=1e-12)
    kept = load(queries=3 / 16, ratio=0.25).keep(q, ctx.k, ctx.v, budget=7, spans=SPANS)
    assert [head.tolist()[:-3] for head in kept] == [[0, 1, 4, 12], [1, 9, 11, 12], [0, 1, 4, 12], [1, 2, 9, 11]]


@pytest.mark.parametrize("allocation", ["exact", "reference"])
@pytest.mark.parametrize("seed", range(20))
def test_kept_tokens_are_those_of_the_naive_twin(seed: int, allocation: str) -> None:
    case = draw(9600 + seed)
    ratio, share = [0.1, 0.5, 0.0, 0.9, 1.0][seed % 5], [0.1, 0.4, 1.0][seed % 3]
    asked = 1 + seed * 7 % (case.tokens - 1)
    method = load(window=case.window, ratio=ratio, queries=share, allocation=allocation)
    q, k, v = case.torch_layer(0)
    spans = regions(case, asked)
    got = method.keep(q, k, v, budget=case.budget, scaling=case.scaling, spans=spans)
    past, queries = case.tokens - case.window, max(1, int(case.tokens * share))
    asks = [j >= case.tokens - asked for j in range(case.tokens)]
    scaling = case.scaling or q.shape[2] ** -0.5
    both = csp.region_scores(case.layers[0][0], case.layers[0][1], asks, queries, scaling)
    within, across = (x.reshape(case.heads, -1, case.tokens).mean(1)[:, :past] for x in both)
    for head, kept in enumerate(got):
        first, second = csp.chosen(within[head], across[head], case.base, ratio, allocation == "reference")
        assert kept.tolist() == sorted({*first, *second, *range(past, case.tokens)})
        assert allocation == "reference" or len(kept) == case.budget


def test_a_token_that_is_best_twice_takes_one_place() -> None:
    """All queries are read, so that a token gets attention from both regions."""
    q, k = torch.randn(2, 40, 8), torch.randn(2, 40, 8)
    spans = {"context": (0, 20), "question": (20, 40)}
    exact, reference = (
        load(queries=1.0, ratio=0.5, allocation=allocation).keep(q, k, k, budget=23, spans=spans)
        for allocation in ("exact", "reference")
    )
    for ours, theirs in zip(exact, reference, strict=True):
        assert len(ours) == 23 > len(theirs) and set(theirs.tolist()) <= set(ours.tolist())
    assert not load(allocation="reference").exact and load().exact


@pytest.mark.parametrize(
    "spans", [{"context": (0, 40), "question": (40, 40)}, {"context": (0, 0), "question": (0, 40)}]
)
def test_a_prompt_with_one_region_is_ranked_within_it(spans: dict[str, tuple[int, int]]) -> None:
    q, k = torch.randn(2, 40, 8), torch.randn(2, 40, 8)
    kept = [load(ratio=ratio).keep(q, k, k, budget=15, spans=spans) for ratio in (0.9, 0.0)]
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


@pytest.mark.parametrize("bias", [0.5, 1.0, 1.3, 1.5])
@pytest.mark.parametrize("tokens", [107, 200, 1999])
def test_shares_of_the_reference_are_a_share_of_the_budget(tokens: int, bias: float) -> None:
    """With hh_ratio = recent_ratio = 0.1, the budget is 2 * int(0.1 * tokens); the window is half of it, times bias."""
    each = int(tokens * 0.1)
    method = kvbench.load_method("csp", window=0.5 * bias)
    assert method.evicting.select.protected(2 * each).window == int(each * bias)


def test_a_value_that_cannot_be_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^method\.ratio=1\.5: must be at most 1$"):
        load(ratio=1.5)
    with pytest.raises(ValueError, match=r"^method\.queries=-0\.1: must be at least 0$"):
        load(queries=-0.1)
    x = torch.randn(2, 60, 8)
    with pytest.raises(ValueError, match=r"^method=csp: reads spans; give keep\(spans=...\)$"):
        load().keep(x, x, x, budget=40)
