"""WindowKV: the printed budgets and scores, a naive twin, sharing between layers, and the rule of each task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kvbench
from kvbench.methods.base import LayerBudget, LayerContext
from kvbench.methods.layers.group_pyramid import GroupPyramid
from kvbench.methods.method import Method
from kvbench.methods.scores.windows import WindowScores
from kvbench.prompts import Prompt
from tests.helpers.tiny_engine import generate, prompt, tiny_model
from tests.reference import select, tva, windowkv
from tests.reference.cases import draw


def load(rule: str, **dials: Any) -> Method:
    return kvbench.load_method("windowkv", task="aggregation", aggregation=rule, **dials)


@pytest.mark.parametrize(
    ("base", "layers", "shared", "printed"),
    [
        (2048, 32, 8, [2926, 2341, 1756, 1170]),
        (1024, 32, 8, [1463, 1171, 879, 585]),
        (512, 32, 8, [732, 586, 440, 292]),
        (2048, 28, 7, [3072, 2390, 1708, 1024]),
        (512, 32, 4, [878, 774, 670, 566, 462, 358, 254, 146]),
    ],
)
def test_the_printed_budgets_of_groups(base: int, layers: int, shared: int, printed: list[int]) -> None:
    wanted = [count for count in printed for _ in range(shared)]
    assert windowkv.reference_budgets(base, layers, shared, 14) == wanted
    budget = LayerBudget(base + 32, 8000, layers, heads=2, query_heads=4, window=32)
    reference = [total // 2 - 32 for total in GroupPyramid(shared, 14, "reference")(budget)]
    exact = [total // 2 - 32 for total in GroupPyramid(shared, 14)(budget)]
    assert reference == wanted
    assert sum(exact) == base * layers and max(abs(a - b) for a, b in zip(exact, wanted, strict=True)) <= len(printed)


@pytest.mark.parametrize(
    ("rule", "printed"),
    [
        ("average", [0.227594, 0.263349, 0.157162, 0.134821]),
        ("top_half", [0.444989, 0.501572, 0.312982, 0.134821]),
    ],
)
def test_the_printed_scores_and_windows(rule: str, printed: list[float]) -> None:
    q, k, v = (torch.tensor(x) for x in tva.tensors())
    naive = windowkv.window_scores(*tva.tensors()[:2], suffix=3, size=4, rule=rule)
    np.testing.assert_allclose(naive, printed, atol=1e-6)
    part = WindowScores("localization", localization=f"{rule}-3", size=4)
    score_UT = part(LayerContext(q, k, v))
    np.testing.assert_allclose(score_UT[:, [0, 4, 8, 12]], [printed] * 2, atol=1e-6)
    kept = load(f"{rule}-3", size=4, allocation="reference").keep(q, k, v, budget=11)
    assert [head.tolist() for head in kept] == [[*range(8), 13, 14, 15]] * 2


@pytest.mark.parametrize("allocation", ["exact", "reference"])
@pytest.mark.parametrize("rule", ["average", "top_half"])
@pytest.mark.parametrize("seed", range(16))
def test_kept_tokens_are_those_of_the_naive_twin(seed: int, rule: str, allocation: str) -> None:
    case = draw(7000 + seed, num_layers=seed % 7 + 1, dtype="float32" if seed % 3 == 0 else "float64")
    layers, shared, size = len(case.layers), seed % 4 + 1, [1, 3, 4, 8][seed % 4]
    if seed % 5 == 0:  # ties: windows with equal keys
        for _, k, _ in case.layers:
            k[:, : case.tokens // size * size] = np.tile(k[:, :size], (1, case.tokens // size, 1))
    method = load(f"{rule}-{case.window}", size=size, shared=shared, allocation=allocation)
    kept = method.keep_layers([case.torch_layer(i) for i in range(layers)], budget=case.budget, scaling=case.scaling)
    scored = case.tokens - case.window
    if allocation == "exact":
        budgets = windowkv.exact_budgets(case.base, layers, shared, 14, scored)
    else:
        budgets = windowkv.reference_budgets(case.base, layers, shared, 14)
    for layer, heads in enumerate(kept):
        q, k, _ = case.layers[windowkv.groups(layers, shared)[layer] * shared]
        scores_W = windowkv.window_scores(q, k, case.window, size, rule, case.scaling)
        tokens = windowkv.windows(scored, size)
        count = budgets[layer]
        if allocation == "reference":
            chosen = windowkv.whole_windows(scores_W, scored, size, count)
            count = sum(len(tokens[w]) for w in chosen)
        for head in heads:
            got = head.tolist()
            assert got[len(got) - case.window :] == list(range(scored, case.tokens))
            row = [scores_W[token // size] for token in range(scored)]
            problem = select.explain_mismatch(got[: len(got) - case.window], row, count, select.RTOL[case.dtype])
            assert problem is None, problem
            assert torch.equal(head, heads[0])
            if allocation == "reference":  # a window stays as a whole or not at all
                assert {t // size for t in got if t < scored} == {
                    w for w, own in enumerate(tokens) if set(own) <= set(got)
                }


def test_exact_keeps_the_beginning_of_one_window_at_most() -> None:
    q, k, v = (torch.randn(heads, 100, 8, generator=torch.Generator().manual_seed(0)) for heads in (4, 2, 2))
    (kept, _) = load("average-5").keep(q, k, v, budget=48)
    windows: dict[int, list[int]] = {}
    for token in kept.tolist()[:-5]:
        windows.setdefault(token // 8, []).append(token % 8)
    partly = [tokens for window, tokens in windows.items() if len(tokens) < 8 and window < 11]
    assert len(kept) == 48 and len(partly) <= 1 and all(tokens == [*range(len(tokens))] for tokens in partly)


def test_every_budget_is_met_whatever_the_groups() -> None:
    for layers in range(1, 12):
        for shared in (1, 2, 3, 8):
            for base in (1, 7, 60, 94):
                budget = LayerBudget(base + 5, 100, layers, heads=3, query_heads=3, window=5)
                totals = GroupPyramid(shared)(budget)
                assert sum(totals) == (base + 5) * layers * 3 and all(15 <= total <= 300 for total in totals)


def test_too_large_groups_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^method\.shared=29: must be at most twice method\.beta=14$"):
        kvbench.load_method("windowkv", shared=29)


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"task": "qa"}, r"^method\.task=qa: must be one of auto, classifier, localization, aggregation$"),
        ({"localization": "top_half"}, r"^method\.localization=top_half: must be top_half-N or average-N, with N last"),
        ({"aggregation": "mean-16"}, r"^method\.aggregation=mean-16: must be top_half-N or average-N"),
        ({"aggregation": "average-0"}, r"^method\.aggregation=average-0: must be top_half-N or average-N"),
        ({"size": 0}, r"^method\.size=0: must be at least 1$"),
        ({"shared": 0}, r"^method\.shared=0: must be at least 1$"),
        ({"allocation": "near"}, r"^method\.allocation=near: must be one of exact, reference$"),
        ({"classifier": "nowhere.json"}, r"^method\.classifier=nowhere\.json: no such file.*train_task_classifier"),
    ],
)
def test_mistakes_are_one_line(dials: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        kvbench.load_method("windowkv", **dials)
    assert "\n" not in str(caught.value)


def test_without_a_task_and_without_words_the_dial_is_named() -> None:
    x = torch.randn(2, 60, 8)
    with pytest.raises(ValueError, match=r"^method\.task=auto: give the prompt's task, or its token_ids and a model"):
        kvbench.load_method("windowkv").keep(x, x, x, budget=40)
    assert len(kvbench.load_method("windowkv").keep(x, x, x, budget=40, task="aggregation")[0]) == 40


def test_each_prompt_of_a_batch_is_compressed_by_the_rule_of_its_task() -> None:
    ids = tuple(prompt(90))
    prompts = [Prompt(ids, len(ids), frozenset(), "", task=task) for task in ("localization", "aggregation")]
    auto = kvbench.load_method("windowkv", shared=2)
    fixed = [kvbench.load_method("windowkv", shared=2, task=task) for task in ("localization", "aggregation")]
    paper = kvbench.load_method("windowkv", shared=2, localization="average-16", aggregation="top_half-32")
    variants = [kvbench.Variant(method, 45) for method in (auto, *fixed, paper)]
    first, second = generate(tiny_model(), prompts, variants, max_prompts=2)
    assert first[0].token_ids == first[1].token_ids == second[1].token_ids == second[3].token_ids
    assert second[0].token_ids == second[2].token_ids == first[2].token_ids == first[3].token_ids
    assert first[0].token_ids != second[0].token_ids
    assert [out.chosen["task"] for out in first] == ["localization", "localization", "aggregation", "localization"]
    assert second[0].chosen == {"task": "aggregation"}


def test_a_budget_within_the_last_queries_names_the_rule_to_change() -> None:
    x = torch.randn(2, 200, 8, generator=torch.Generator().manual_seed(0))
    method = kvbench.load_method("windowkv", task="localization")
    with pytest.raises(ValueError, match=r"^budget=20: .* 32 tokens \(method.localization=top_half-32\)"):
        method.keep(x, x, x, budget=20)
