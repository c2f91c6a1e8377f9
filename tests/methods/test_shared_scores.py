"""Scores of one layer that serve others, and parts that choose their fields by the prompt: alone, fused, asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import pytest
import torch
from torch import Tensor

import kvbench
from kvbench.common.paths import conf_dir
from kvbench.methods.base import LayerBudget, LayerContext, Protected, Score
from kvbench.methods.candidates import Candidates
from kvbench.methods.heads.adaptive import Adaptive
from kvbench.methods.layers.cumulative_mass import CumulativeMass
from kvbench.methods.load import load
from kvbench.methods.method import Method
from kvbench.methods.prompt_facts import PromptFacts
from kvbench.methods.scores.column_sums import ColumnSums
from kvbench.methods.select.top_k import TopK
from kvbench.prompts import Prompt
from tests.helpers.methods import facts, shipped, with_parts
from tests.helpers.tiny_engine import generate, prompt, tiny_model


@dataclass(frozen=True)
class OfGroup(Score):
    """Column sums of the first of every `size` layers."""

    size: int

    def layer_of(self, layer: int, num_layers: int) -> int:
        return layer - layer % self.size

    def __call__(self, ctx: LayerContext) -> Tensor:
        assert ctx.layer % self.size == 0
        return ColumnSums()(ctx)


@dataclass(frozen=True)
class ByTask(TopK):
    """A wider window for prompts whose task is aggregation."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"task"})

    def for_prompt(self, facts: PromptFacts) -> Self:
        return replace(self, window=9 if facts.task == "aggregation" else 3)

    def protected(self, tokens: int) -> Protected:
        return Protected(0, int(self.window) or 9)


def shared(size: int = 2) -> Method:
    return with_parts(kvbench.load_method("h2o", window=4), score=OfGroup(size))


def layers(count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [tuple(torch.randn(heads, 40, 8, generator=g) for heads in (4, 2, 2)) for _ in range(count)]  # type: ignore[misc]


def test_keep_layers_and_the_engine_share_the_scores_of_a_layer() -> None:
    method, (model, tokenizer) = shared(), tiny_model()
    seen = []

    def record(keep: Tensor) -> Tensor:
        seen.append(keep.clone())
        return keep

    @dataclass(frozen=True)
    class Watched(TopK):
        def __call__(self, ctx, candidates, budget, protected):  # type: ignore[no-untyped-def]
            return record(super().__call__(ctx, candidates, budget, protected))

    generate((model, tokenizer), [prompt(60)], [kvbench.Variant(with_parts(method, select=Watched(window=4)), 20)])
    assert len(seen) == 4 and torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[1], seen[2])
    kept = method.keep_layers(layers(5), budget=12)
    alone = with_parts(method, score=ColumnSums()).keep_layers(layers(5), budget=12)
    for layer, heads in enumerate(kept):
        assert all(torch.equal(a, b) for a, b in zip(heads, alone[layer - layer % 2], strict=True))


def test_a_single_layer_that_uses_the_scores_of_another_is_refused_in_one_line() -> None:
    (q, k, v), *_ = layers(1)
    assert len(shared().keep(q, k, v, budget=12, layer=2, num_layers=4)) == 2
    with pytest.raises(ValueError, match="OfGroup uses the scores of layer 2 in layer 3.*keep_layers") as caught:
        shared().keep(q, k, v, budget=12, layer=3, num_layers=4)
    assert "\n" not in str(caught.value)


def test_waiting_layers_and_fused_variants_give_what_each_gives_alone() -> None:
    waiting = with_parts(shared(), layers=CumulativeMass())
    methods = [shared(), waiting, shared(3), kvbench.load_method("h2o", window=4), waiting]
    variants = [kvbench.Variant(m, b) for m, b in zip(methods, (20, 24, 0.4, 20, 0.5), strict=True)]
    prompts = [prompt(60), prompt(75)]
    together = generate(tiny_model(), prompts, variants, max_prompts=2)
    for variant, rows in zip(variants, zip(*together, strict=True), strict=True):
        for ids, row in zip(prompts, rows, strict=True):
            ((alone,),) = generate(tiny_model(), [ids], [variant])
            assert (alone.kept, alone.token_ids, alone.kv_bytes) == (row.kept, row.token_ids, row.kv_bytes)


def test_parts_choose_by_the_task_of_each_prompt() -> None:
    """Prompts of one batch keep windows of their own tasks, and a context with two tasks is compressed for each."""
    method = with_parts(kvbench.load_method("h2o"), select=ByTask())
    ids = tuple(prompt(60))
    asked = [Prompt(ids, len(ids), frozenset(), "", task=task) for task in ("localization", "aggregation")]
    fixed = [with_parts(kvbench.load_method("h2o"), select=TopK(window=window)) for window in (3, 9)]
    outs = generate(tiny_model(), asked, [kvbench.Variant(method, 15)], max_prompts=2)
    for row, out in enumerate(outs):
        ((alone,),) = generate(tiny_model(), [list(ids)], [kvbench.Variant(fixed[row], 15)])
        assert out[0].token_ids == alone.token_ids
    (q, k, v), *_ = layers(1)
    for task, same in zip(("localization", "aggregation"), fixed, strict=True):
        pairs = zip(method.keep(q, k, v, budget=15, task=task), same.keep(q, k, v, budget=15), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ValueError, match=r"^budget=9: h2o always keeps 9 tokens"):
        method.check_room(9)


def test_a_task_of_another_name_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^prompt: task='qa' must be one of localization, aggregation, or None$"):
        Prompt((1,), 1, frozenset(), "", task="qa")


@pytest.mark.parametrize("name", [name for name, method in shipped().items() if method.evicts])
def test_a_score_that_tells_no_heads_apart_says_so(name: str) -> None:
    """Rules that compare heads are refused next to it, because they would do nothing."""
    (q, k, v), *_ = layers(1)
    known = facts(shipped()[name], q, k)
    of_layer = {fact: known.pop(fact, None) for fact in ("hidden", "probed")}
    spans = {"context": (0, 20), "question": (20, 40)}
    of_prompt = PromptFacts(known.get("token_ids"), spans, known.get("model"), task=known.get("task"))
    method = shipped()[name].for_prompt(of_prompt)
    ctx = method._context(q, k, v, None, 0, 1, None, of_prompt, **of_layer)
    for score in method.all_scores:
        score_UT = ctx.score(score)
        assert score.is_shared == bool((score_UT == score_UT[:1]).all()), type(score).__name__


def test_heads_by_scores_that_all_heads_share_are_refused(tmp_path: Path) -> None:
    text = "name: own\nuse: tova\nheads: {_target_: kvbench.methods.heads.adaptive.Adaptive}\n"
    (tmp_path / "own.yaml").write_text(text)
    (tmp_path / "tova.yaml").write_text((conf_dir() / "method" / "tova.yaml").read_text())
    with pytest.raises(ValueError, match=r"^method=own: .*LastQuery") as caught:
        load(tmp_path, "own")
    assert "\n" not in str(caught.value)


def test_weights_of_heads_are_those_of_each_budget() -> None:
    """The share of a head's mass that an even split keeps depends on the budget, so variants cannot share one order."""
    values_UN = torch.rand(2, 40, generator=torch.Generator().manual_seed(1))
    values_UN[0] = 4 * values_UN[0] ** 8  # a few tokens have all of this head's mass
    k = torch.zeros(2, 40, 4)
    ctx, part, shared = LayerContext(k, k, k), Adaptive(floor=0.0, normalize=True), Candidates(values_UN)
    computed = {}
    for total in (4, 20, 60):
        budget = LayerBudget(total // 2, 40, 1, 2, 2, 0, 0)
        computed[total] = part(ctx, shared, total, budget)
        assert computed[total] == part(ctx, Candidates(values_UN), total, budget)
    stale = Candidates(values_UN * shared.best_mass(2)[:, None]).heads_by_rank()
    assert any(computed[total][0] != int((stale[:total] == 0).sum()) for total in (20, 60)), "the budget matters here"
