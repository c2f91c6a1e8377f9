"""Budgets while generating, per layer and head, and the compression times of a row."""

from __future__ import annotations

import time
from dataclasses import replace

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
from tests.helpers.tiny_engine import NEW, Tiny, generate, prompt, tiny_model

NAP = 0.05  # seconds per layer


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


class SlowWindow(WindowAttention):
    """A slow score."""

    def __call__(self, ctx: LayerContext) -> Tensor:
        time.sleep(NAP)
        return super().__call__(ctx)


class SlowColumns(LayerColumnSums):
    """A slow score, of a method that waits for all layers."""

    def __call__(self, ctx: LayerContext) -> Tensor:
        time.sleep(NAP)
        return super().__call__(ctx)


@pytest.mark.parametrize(("name", "score"), [("snapkv", SlowWindow(window=32)), ("prefixkv", SlowColumns())])
def test_the_time_of_a_row_counts_its_own_work(tiny: Tiny, name: str, score: object) -> None:
    """The time of a slow score counts for each variant that uses it, and for no other variant of the batch."""
    plain = kvbench.load_method(name)
    slow = with_parts(plain, score=score)
    layers = tiny[0].config.num_hidden_layers
    asked = [kvbench.Variant(m, 70) for m in (plain, slow, slow)] + [kvbench.Variant(kvbench.load_method("fullkv"))]
    before, first, second, full = (g.timings for g in generate(tiny, [prompt(290)], asked)[0])
    for row in (first, second):
        assert layers * NAP <= row.compress_s < 2 * layers * NAP, "once, however often a variant uses it"
        assert row.ttft_s >= row.prefill_s + row.compress_s
    for other in (before, full):
        assert other.compress_s < layers * NAP / 2 and other.ttft_s < first.ttft_s - layers * NAP / 2
    assert first.prefill_s < layers * NAP, "the forward pass does not include the scores"
