"""A part of one's own gives the same result on a GPU as on a CPU, whatever shipped part it inherits from.

On a CPU the kernels' operations are their torch references, so these tests need no GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import kvbench
from kvbench.methods.base import Heads, LayerBudget, Protected, Score, Select
from kvbench.methods.candidates import Candidates, HeadBudget, HeadSplit
from kvbench.methods.context import LayerContext
from kvbench.methods.heads.adaptive import Adaptive
from kvbench.methods.heads.uniform import Uniform
from kvbench.methods.scores.column_sums import ColumnSums
from kvbench.methods.scores.window_attention import WindowAttention
from kvbench.methods.select.top_k import TopK
from kvbench_kernels.ops.prompt import PromptKernels
from tests.helpers.methods import with_parts

TOKENS, BUDGET, WINDOW = 90, 40, 8


@dataclass(frozen=True)
class FirstHeadTakesAll(Adaptive):
    """All free tokens to head 0."""

    def __call__(self, ctx: LayerContext, candidates: Candidates, total: int, budget: LayerBudget) -> list[int]:
        heads, count = candidates.values_UN.shape
        return [min(total, count), *[0] * (heads - 2), max(0, total - count)]


@dataclass(frozen=True)
class LastHeadFirst(Uniform):
    """Twice as many tokens for the last head as for the first."""

    def __call__(self, ctx: LayerContext, candidates: Candidates, total: int, budget: LayerBudget) -> list[int]:
        return [total // 3, total - total // 3]


class OddPositions(TopK):
    """Odd positions first, as many as the budget gives a head."""

    def __call__(self, ctx: LayerContext, candidates: Candidates, budget: HeadBudget, protected: Protected) -> Tensor:
        keep_UT = torch.zeros(ctx.num_kv_heads, ctx.num_tokens, dtype=torch.bool)
        keep_UT[:, ctx.num_tokens - protected.window :] = True
        for head, count in enumerate(candidates.counts(budget)):
            before = range(ctx.num_tokens - protected.window)
            keep_UT[head, [*before[1::2], *before[::2]][:count]] = True
        return keep_UT


class EarlyFirst(WindowAttention):
    """The earlier, the better."""

    def __call__(self, ctx: LayerContext) -> Tensor:
        return -torch.arange(ctx.num_tokens, dtype=torch.float32).expand(ctx.num_kv_heads, -1)


class SquaredSums(ColumnSums):
    """Accumulated attention, weighed by the position."""

    def __call__(self, ctx: LayerContext) -> Tensor:
        return super().__call__(ctx) * torch.arange(ctx.num_tokens)


OWN_PARTS = [
    {"heads": FirstHeadTakesAll(floor=0.5)},
    {"heads": LastHeadFirst()},
    {"select": OddPositions(window=WINDOW)},
    {"score": EarlyFirst(window=WINDOW)},
    {"score": SquaredSums()},
    {"heads": FirstHeadTakesAll(), "select": OddPositions(window=WINDOW), "score": EarlyFirst(window=WINDOW)},
]


def prompt(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(4, TOKENS, 16, generator=g), *(torch.randn(2, TOKENS, 16, generator=g) for _ in range(2))


def positions(method: Any, kernels: PromptKernels | None) -> list[list[int]]:
    return [head.tolist() for head in method.keep(*prompt(), budget=BUDGET, kernels=kernels)]


@pytest.mark.parametrize("parts", OWN_PARTS, ids=lambda parts: "-".join(type(p).__name__ for p in parts.values()))
@pytest.mark.parametrize("name", ["snapkv", "ada_snapkv", "h2o"])
def test_a_subclass_is_not_replaced_by_the_kernel_of_its_parent(name: str, parts: dict[str, Any]) -> None:
    shipped = kvbench.load_method(name, window=WINDOW)
    own = with_parts(shipped, **parts)
    on_cpu = positions(own, None)
    assert positions(own, PromptKernels()) == on_cpu
    if (name, next(iter(parts))) != ("snapkv", "select"):
        assert on_cpu != positions(shipped, None), "the part must make a difference, or the test shows nothing"


def test_a_subclass_without_a_rule_of_its_own_keeps_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    class Renamed(TopK):
        pass

    asked: list[str] = []
    real = PromptKernels.select
    monkeypatch.setattr(PromptKernels, "select", lambda *args: asked.append("select") or real(*args))
    own = with_parts(kvbench.load_method("snapkv", window=WINDOW), select=Renamed(window=WINDOW))
    assert positions(own, PromptKernels()) == positions(own, None)
    assert asked == ["select"]


@pytest.mark.parametrize("total", [0, 1, 7, 30, 60])
@pytest.mark.parametrize("split", [("head", 0.0), ("layer", 0.0), ("layer", 0.2), ("layer", 1.0)])
def test_a_rule_means_the_same_to_torch_and_to_the_kernels(split: tuple[Any, float], total: int) -> None:
    values_UN = torch.randint(0, 9, (3, 20), generator=torch.Generator().manual_seed(total)).float()
    budget = HeadSplit(total, *split)
    by_torch, by_kernel = Candidates(values_UN), Candidates(values_UN, PromptKernels())
    assert torch.equal(by_torch.best(budget), by_kernel.best(budget))
    assert by_torch.best(budget).sum(1).tolist() == by_torch.counts(budget)
    assert sum(by_torch.counts(budget)) == total


@dataclass
class Seen:
    """The contexts that a score part got, one per layer."""

    contexts: list[tuple[int, int, float, int, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)


def test_every_field_of_the_context_reaches_a_part() -> None:
    """By `keep_layers`, and by the engine on a real prefill."""
    seen = Seen()

    @dataclass(frozen=True)
    class Recording(Score):
        def __call__(self, ctx: LayerContext) -> Tensor:
            shapes = tuple(ctx.q.shape), tuple(ctx.v.shape)
            seen.contexts.append((ctx.layer, ctx.num_layers, ctx.scaling, ctx.group, *shapes))
            assert ctx.k.shape == ctx.v.shape and ctx.k.shape[:2] == (ctx.num_kv_heads, ctx.num_tokens)
            return ctx.v.norm(dim=-1) * (1 + ctx.layer)

    method = with_parts(kvbench.load_method("snapkv", window=WINDOW), score=Recording())
    method.keep_layers([prompt(seed) for seed in range(3)], budget=BUDGET, scaling=0.3)
    assert seen.contexts == [(layer, 3, 0.3, 2, (4, TOKENS, 16), (2, TOKENS, 16)) for layer in range(3)]
    seen.contexts.clear()
    tiny = kvbench.load_model("tiny")
    config = tiny.model.config
    kvbench.generate(tiny.model, tiny.tokenizer, [list(range(5, 65))], [(method, BUDGET)], max_new_tokens=2)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim = config.head_dim
    expected = (heads // kv_heads, (heads, 60, dim), (kv_heads, 60, dim))
    assert [c[:2] for c in seen.contexts] == [(layer, 4) for layer in range(4)]
    assert {c[3:] for c in seen.contexts} == {expected} and {c[2] for c in seen.contexts} == {dim**-0.5}


def test_queries_are_not_silently_empty_where_they_are_freed() -> None:
    """Layer budgets that need all layers' scores free the queries; a part that reads them then is told so."""
    ctx = LayerContext(*prompt())
    score = WindowAttention(window=WINDOW)
    before = score(ctx)
    ctx.keep_scores([score])
    assert torch.equal(ctx.score(score), before)
    with pytest.raises(RuntimeError, match="queries of this layer are freed"):
        _ = ctx.q


def test_reused_results_are_charged_with_the_seconds_they_took() -> None:
    """Two variants that share a score each count it, although it is computed once."""
    seconds = iter(range(1000))
    ctx = LayerContext(*prompt(), clock=lambda: float(next(seconds)))
    score = WindowAttention(window=WINDOW)
    ctx.score(score)
    assert ctx.reused_s == 0
    ctx.score(score)
    # window_attention took one tick between its two readings; the score around it took three
    assert ctx.reused_s == 3
    ctx.window_attention(WINDOW)
    assert ctx.reused_s == 4
    nested = LayerContext(*prompt(), clock=lambda: float(next(seconds)))
    nested.window_attention(WINDOW)
    nested.score(score)
    assert nested.reused_s == 1
    nested.score(score)
    assert nested.reused_s == 3, "the score took one tick itself, and one for the attention that it reused"


def test_a_protocol_has_the_defaults_that_a_small_part_needs() -> None:
    @dataclass(frozen=True)
    class KeyNorm(Score):
        def __call__(self, ctx: LayerContext) -> Tensor:
            return -ctx.k.norm(dim=-1)

    method = with_parts(kvbench.load_method("snapkv", window=WINDOW), score=KeyNorm())
    assert method.queries == 0 and method.exact and not method.needs_statistics
    assert isinstance(KeyNorm(), Score) and isinstance(Adaptive(), Heads) and isinstance(TopK(), Select)
    assert [len(head) for head in method.keep(*prompt(), budget=BUDGET)] == [BUDGET] * 2
