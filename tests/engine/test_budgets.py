"""Budgets while generating, per layer and head, and the compression times of a row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

import kvbench
from kvbench.methods.context import LayerContext
from kvbench.methods.decode.accumulate import AccumulateAndEvict
from kvbench.methods.decoding import Decoding
from kvbench.methods.scores.layer_column_sums import LayerColumnSums
from kvbench.methods.scores.window_attention import WindowAttention
from kvbench.prompts import Prompt
from tests.helpers.methods import with_parts
from tests.helpers.stopped_clock import StoppedClock
from tests.helpers.tiny_engine import NEW, Tiny, generate, prompt, tiny_model

NAP = 1.0  # seconds per layer


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_model()


@pytest.mark.parametrize("cache", ["ragged", "masked"])
@pytest.mark.parametrize("question", ["aware", "agnostic"])
@pytest.mark.parametrize("name", ["ada_pyramidkv", "pyramidkv", "ada_snapkv"])
def test_a_decode_policy_holds_the_budget_of_each_head(tiny: Tiny, name: str, question: str, cache: str) -> None:
    """The budgets of layers and heads stay those of the prefill while generating."""
    method = replace(kvbench.load_method(name), decode=Decoding(AccumulateAndEvict(window=16)))
    text = Prompt(ids=tuple(prompt(290)), context_len=270, stop_ids=frozenset(), text="")
    ((out,),) = generate(tiny, [text], [kvbench.Variant(method, 70)], question=question, cache=cache)
    heads = [kept for layer in out.kept for kept in layer]
    assert sum(heads) == 70 * len(heads) and len(set(heads)) > 1, "equal shares would test nothing"
    assert out.kept_max == max(heads)
    with kvbench.compressed(tiny[0], method, 70, cache=cache) as handle:
        tokens = tiny[0].generate(_tensor(prompt(290)), max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    assert handle.cache is not None and tokens.shape[1] == 290 + NEW
    kept = [kept for layer in handle.cache.kept for kept in layer]
    assert sum(kept) == 70 * len(kept) and len(set(kept)) > 1


def _tensor(ids: list[int]) -> Tensor:
    import torch

    return torch.tensor([ids])


@pytest.mark.parametrize(
    ("name", "kind", "dials"), [("snapkv", WindowAttention, {"window": 32}), ("prefixkv", LayerColumnSums, {})]
)
def test_the_time_of_a_row_counts_its_own_work(
    tiny: Tiny, name: str, kind: Any, dials: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of a slow score counts for each variant that uses it, and for no other variant of the batch.

    The second method waits for all layers.
    """
    clock = StoppedClock(monkeypatch)

    class Slow(kind):  # type: ignore[misc]
        """A slow score."""

        def __call__(self, ctx: LayerContext) -> Tensor:
            clock.seconds += NAP
            scores: Tensor = super().__call__(ctx)
            return scores

    plain = kvbench.load_method(name)
    slow = with_parts(plain, score=Slow(**dials))
    layers = tiny[0].config.num_hidden_layers
    asked = [kvbench.Variant(m, 70) for m in (plain, slow, slow)] + [kvbench.Variant(kvbench.load_method("fullkv"))]
    before, first, second, full = (g.timings for g in generate(tiny, [prompt(290)], asked)[0])
    for row in (first, second):
        assert row.compress_s == layers * NAP, "once, however often a variant uses it"
        assert row.ttft_s == row.prefill_s + row.compress_s
    for other in (before, full):
        assert other.compress_s == 0 and other.ttft_s == other.prefill_s
    assert first.prefill_s == 0, "the forward pass does not include the scores"
