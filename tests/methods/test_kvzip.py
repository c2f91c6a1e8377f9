"""KVzip against a naive twin: passes, scores, and the tokens of all layers above one threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kvbench
from kvbench.methods.context import LayerContext
from kvbench.methods.layers.global_top import GlobalTop
from kvbench.methods.method import Method
from kvbench.methods.probe.repeat import FIRST, NEXT, Repeat
from kvbench.methods.prompt_facts import PromptFacts
from tests.helpers.methods import with_parts
from tests.reference import kvzip


class Texts:
    """A view of a model that encodes texts as their letters, and starts every answer with 900."""

    def encode(self, text: str) -> list[int]:
        return [1000 + ord(letter) for letter in text]

    def answer_prefix(self) -> list[int]:
        return [900]


def test_every_token_after_the_sinks_is_repeated_once() -> None:
    ids, first, later = list(range(25)), Texts().encode(FIRST), Texts().encode(NEXT)
    passes = Repeat(chunk=10, sinks=4, overlap=8).passes(ids, Texts())  # type: ignore[arg-type]
    assert passes == [
        ([*first, 900, *range(4, 14)], (4, 14)),
        ([*later, *range(6, 14), 900, *range(14, 24)], (14, 24)),
        ([*later, *range(16, 24), 900, 24], (24, 25)),
    ]
    assert Repeat(chunk=3, sinks=0, overlap=8).passes(ids[:4], Texts())[1] == (  # type: ignore[arg-type]
        [*later, 0, 1, 2, 900, 3],
        (3, 4),
    )
    assert Repeat(sinks=4).passes(ids[:4], Texts()) == []  # type: ignore[arg-type]


def test_a_template_is_not_repeated() -> None:
    """The chat template before the text counts as sinks, however long it is."""
    spans, probe = {"template": (0, 7), "context": (0, 20)}, Repeat(chunk=10, sinks=4)
    passes = probe.passes(list(range(25)), Texts(), spans)  # type: ignore[arg-type]
    assert [about for _, about in passes] == [(7, 17), (17, 25)] and passes[0][0][-10:] == list(range(7, 17))
    assert probe.passes(range(9), Texts(), {"template": (0, 3)})[0][1] == (4, 9)  # type: ignore[arg-type]


@pytest.mark.parametrize("template", [0, 6])
@pytest.mark.parametrize("seed", range(12))
def test_scores_are_those_of_the_twin(seed: int, template: int) -> None:
    """The last pass is longer than a block of queries, so that blocks are tried as well."""
    rng = np.random.default_rng(seed)
    heads, group, tokens, dim = int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(9, 30)), 8
    sinks, chunk = int(rng.integers(0, 5)), int(rng.integers(3, 12))
    k = rng.normal(size=(heads, tokens, dim)).astype(np.float32)
    facts = PromptFacts(spans={"template": (0, template)})
    q, kv = torch.zeros(heads * group, tokens, dim), torch.tensor(k)
    ctx = LayerContext(q, kv, kv, scaling=0.4, facts=facts)
    probe, score_UT, expected = Repeat(chunk=chunk, sinks=sinks), None, np.zeros((heads, tokens))
    sinks = max(sinks, template)
    passes = probe.passes(range(tokens), Texts(), facts.spans)  # type: ignore[arg-type]
    for _, (begin, end) in passes:
        extra = 290 if seed == 0 and end == tokens else int(rng.integers(1, 15))
        q_new = 2 * rng.normal(size=(heads * group, extra, dim)).astype(np.float32)
        k_new = rng.normal(size=(heads, extra, dim)).astype(np.float32)
        about = next(about for _, about in passes if about == (begin, end))
        score_UT = probe.observe(score_UT, ctx, torch.tensor(q_new), torch.tensor(k_new), about)
        expected[:, begin:end] = kvzip.chunk_scores(q_new, k, k_new, begin, end, sinks, 0.4)
    assert score_UT is not None
    np.testing.assert_allclose(score_UT.numpy(), expected, rtol=2e-5, atol=1e-7)


def kept(score_LUT: np.ndarray, budget: int | float, method: Method | None = None) -> list[list[list[int]]]:
    """Return what KVzip keeps of layers whose probe observed these scores."""
    method = kvbench.load_method("kvzip") if method is None else method
    layers, heads, tokens = score_LUT.shape
    k = torch.zeros(heads, tokens, 4)
    probed = [{method.probe: torch.tensor(score_UT, dtype=torch.float32)} for score_UT in score_LUT]
    out = method.keep_layers([(k, k, k)] * layers, budget=budget, probed=probed)
    return [[head.tolist() for head in layer] for layer in out]


@pytest.mark.parametrize("seed", range(20))
def test_one_threshold_for_all_layers_and_heads(seed: int) -> None:
    """Every token above it stays, no token below it; of equal ones as many as the budget leaves room for."""
    rng = np.random.default_rng(seed)
    layers, heads, tokens = int(rng.integers(1, 5)), int(rng.integers(1, 4)), int(rng.integers(12, 60))
    score = rng.random((layers, heads, tokens)) if seed % 2 else rng.integers(0, 6, (layers, heads, tokens)) / 5
    budget = int(rng.integers(5, tokens))
    low, count = kvzip.threshold(score, budget, sinks=4)
    kept_LU = kept(score, budget)
    stays = np.zeros(score.shape, dtype=bool)
    for layer, of_layer in enumerate(kept_LU):
        for head, positions in enumerate(of_layer):
            stays[layer, head, positions] = True
    assert stays[:, :, :4].all(), "sinks"
    free, scored = stays[:, :, 4:], score[:, :, 4:].astype(np.float32)
    assert free.sum() == count
    assert free[scored > np.float32(low)].all() and not free[scored < np.float32(low)].any()


def test_the_printed_example() -> None:
    """Half of [.9, .5, .7, .2, .5, .1, .3, .8] stays: the three best, and the first of two equal ones."""
    method = with_parts(kvbench.load_method("kvzip"), select=kvbench.load_method("h2o", window=0).eviction.select)  # type: ignore[union-attr]
    score = np.array([[[0.9, 0.5, 0.7, 0.2, 0.5, 0.1, 0.3, 0.8]]])
    assert kept(score, 0.5, method) == [[[0, 1, 2, 7]]]


def test_a_head_or_layer_may_keep_its_sinks_alone() -> None:
    score = np.stack([np.full((2, 20), 0.9), np.full((2, 20), 0.1)])
    assert [[len(head) for head in layer] for layer in kept(score, 12)] == [[20, 20], [4, 4]]


def test_other_layers_are_needed() -> None:
    method = kvbench.load_method("kvzip")
    k = torch.zeros(2, 20, 4)
    with pytest.raises(ValueError, match="give keep\\(probed="):
        method.keep(k, k, k, budget=10)
    probed = {method.probe: torch.zeros(2, 20)}
    with pytest.raises(ValueError, match="need all 3 layers; use keep_layers"):
        method.keep(k, k, k, budget=10, layer=1, num_layers=3, probed=probed)
    assert len(method.keep_layers([(k, k, k)] * 3, budget=10, probed=probed)) == 3
    assert GlobalTop().needs_statistics
