"""Prompts that go through the decode path in chunks, and StreamingLLM in its own form.

Shape suffixes: N tokens of the sequence, U KV heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kvbench
from kvbench.cache.base import Entry
from kvbench.cache.local import LocalLayer
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.engine.attention import kvbench_attention, last_logits
from kvbench.engine.caches import ContinuePass, LayerCaches, Place
from kvbench.engine.feed import FeedPass
from kvbench.engine.model_view import view_of
from kvbench.engine.probe import checked_plan
from kvbench.engine.start import start_feed
from kvbench.methods.decode.streaming import StreamingWindow
from kvbench.methods.decoding import Decoding
from kvbench.prompts import Prompt
from tests.engine.test_architectures import EXACT, build
from tests.helpers.tiny_engine import Tiny, generate, own_answer, prompt, tiny_model
from tests.reference import streaming


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_model()


def rotate(x: Tensor, by: Tensor) -> Tensor:
    """Return [N, D] keys rotated as the naive twin rotates them."""
    rows = [streaming.rotated(x_D.double().numpy(), int(n)) for x_D, n in zip(x, by.flatten(), strict=True)]
    return torch.tensor(np.stack(rows), dtype=x.dtype)


@pytest.mark.parametrize("kind", [RaggedCache, MaskedCache])
@pytest.mark.parametrize("seed", range(6))
def test_turned_sinks_equal_positions_within_the_cache(kind: type[RaggedCache] | type[MaskedCache], seed: int) -> None:
    rng = np.random.default_rng(seed)
    heads, sinks, tokens, dim = 2, int(rng.integers(1, 5)), 60, 8
    limit = sinks + int(rng.integers(2, 12))
    chunks: list[int] = []
    while sum(chunks) < tokens:
        chunks.append(min(int(rng.choice([1, 1, 2, 5, 9])), tokens - sum(chunks)))
    q, k, v = (rng.normal(size=(heads, tokens, dim)) for _ in range(3))
    wanted = np.stack([streaming.outputs(q[u], k[u], v[u], chunks, sinks, limit) for u in range(heads)])
    q_UND, k_UND = (
        torch.tensor(np.array([[streaming.rotated(x, n) for n, x in enumerate(head)] for head in y])) for y in (q, k)
    )
    cache: Any = kind(1)
    nothing = torch.zeros(heads, 0, dim)
    policy = Decoding(StreamingWindow(sinks))
    entry = Entry(0, torch.ones(heads, 0).bool(), tokens, decoding=policy, base_U=[limit] * heads, rotate=rotate)
    cache.add(0, [entry], nothing, nothing)
    outs, first = [], 0
    for chunk in chunks:
        at = slice(first, first + chunk)
        parts = (x[None, :, at].float() for x in (q_UND, k_UND, torch.tensor(v)))
        outs.append(cache.attend(0, [0], *parts, 1.0)[0])
        first += chunk
    torch.testing.assert_close(torch.cat(outs, 1).double(), torch.tensor(wanted), rtol=1e-4, atol=1e-4)
    assert cache.lengths(0) == [[limit] * heads]


@pytest.mark.parametrize("chunk", [1, 7, 500])
def test_one_forward_call_equals_one_per_chunk(tiny: Tiny, chunk: int) -> None:
    model, tokenizer = tiny
    variant = kvbench.Variant(kvbench.load_method("streaming_llm_true", chunk=chunk), 24)
    ids, plan = torch.tensor([prompt(60)]), checked_plan(model)
    logits = []
    with torch.inference_mode(), kvbench_attention(model):
        for whole in (True, False):
            caches = LayerCaches(plan, RaggedCache(len(plan.full)))
            first = 60 if whole else min(chunk, 60)
            attention = start_feed(
                model, tokenizer, [variant], caches, places=[[Place(0, 99)]], token_ids=ids[0, :first]
            )
            out = last_logits(model, ids[:, :first], torch.arange(first)[None], attention)
            for begin in range(first, 60, chunk):
                at = torch.arange(begin, min(begin + chunk, 60))
                out = last_logits(model, ids[:, at], at[None], ContinuePass(caches, [0], ids[:, at].tolist()))
            logits.append((out, caches.kv.lengths(0)))
    torch.testing.assert_close(logits[0][0], logits[1][0], rtol=1e-4, atol=1e-4)
    assert logits[0][1] == logits[1][1] == [[24, 24]] * len(plan.full)


def test_a_fed_prompt_is_compressed_by_the_rule_of_its_task(tiny: Tiny) -> None:
    """Parts of a fed method choose their fields by the prompt, as in the shared prefill."""

    def variant(**dials: Any) -> kvbench.Variant:
        windows = kvbench.load_method("windowkv", shared=2, **dials)
        feeding = kvbench.load_method("streaming_llm_true", chunk=16)
        return kvbench.Variant(replace(feeding, eviction=windows.eviction), 40)

    asked = Prompt(ids=tuple(prompt(90)), context_len=90, stop_ids=frozenset(), text="", task="aggregation")
    rules = {"localization": "top_half-33", "aggregation": "average-6"}
    variants = [variant(**rules), *(variant(task=task, **{task: rule}) for task, rule in rules.items())]
    auto, other, fixed = generate(tiny, [asked], variants)[0]
    assert (auto.kept, auto.token_ids) == (fixed.kept, fixed.token_ids) and auto.kept != other.kept
    assert auto.chosen == fixed.chosen == {"task": "aggregation"} != other.chosen


@pytest.mark.parametrize("question", ["aware", "agnostic"])
def test_fed_rows_next_to_shared_ones(tiny: Tiny, question: str) -> None:
    """Rows of one feed go together, next to those of the shared prefill; alone and together give the same answers."""
    text = Prompt(ids=tuple(prompt(90)), context_len=80, stop_ids=frozenset(), text="")
    fed = [("streaming_llm_true", {"chunk": 16}), ("streaming_llm_true", {"chunk": 5}), ("streaming_llm_true", {})]
    asked = [kvbench.Variant(kvbench.load_method(name, **dials), budget) for name, dials in fed for budget in (24, 0.5)]
    asked += [kvbench.Variant(kvbench.load_method("fullkv")), kvbench.Variant(kvbench.load_method("snapkv"), 40)]
    together = generate(tiny, [text], asked, question=question)[0]
    masked = generate(tiny, [text], asked, question=question, cache="masked")[0]
    span = 90 if question == "aware" else 80
    for variant, out, naive in zip(asked, together, masked, strict=True):
        ((alone,),) = generate(tiny, [text], [variant], question=question)
        assert out.token_ids == alone.token_ids == naive.token_ids, variant
        assert out.kept == alone.kept == naive.kept and out.kept_max == naive.kept_max
        assert out.kv_bytes_full == alone.kv_bytes_full
    assert {n for layer in together[0].kept for n in layer} == {24} and together[0].kept_max == 24
    assert {n for layer in together[1].kept for n in layer} == {span // 2}


@pytest.mark.parametrize("name", ["smollm3", "cohere2, no positions in full layers", "gemma3"])
def test_layers_that_do_not_rotate_alike_are_fed_as_by_the_rule(name: str) -> None:
    """Every full layer computes what the naive twin does: positions within the cache where it has positions at all."""
    model = build(*EXACT[name][:3])
    plan, sinks, limit, chunk, tokens = checked_plan(model), 3, 20, 7, 60
    variant = kvbench.Variant(kvbench.load_method("streaming_llm_true", chunk=chunk, sinks=sinks), limit)
    ids, seen = torch.tensor([prompt(tokens)]) % 250, {}
    caches = LayerCaches(plan, RaggedCache(len(plan.full)))
    with torch.inference_mode(), kvbench_attention(model):
        feed = start_feed(model, None, [variant], caches, places=[[Place(0, 9)]], token_ids=ids[0])
        attend = feed.attend

        def observed(layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
            out = attend(layer, q, k, v, scaling)
            seen[layer] = (q[0] * scaling, k[0], v[0], out[0])
            return out

        feed.attend = observed  # type: ignore[method-assign]
        last_logits(model, ids, torch.arange(tokens)[None], feed)
    view, position_T = view_of(model, None), torch.arange(tokens)
    for place, layer in enumerate(plan.full):
        q_HTD, k_UTD, v_UTD, out_HTD = seen[layer]
        q_HTD, k_UTD = (view.rotate(x, -position_T, place) for x in (q_HTD, k_UTD))
        held: list[int] = []
        for first in range(0, tokens, chunk):
            held += range(first, min(first + chunk, tokens))
            k_UMD = view.rotate(k_UTD[:, held], torch.arange(len(held)), place)
            for token in range(first, min(first + chunk, tokens)):
                at = held.index(token)
                q_UGD = view.rotate(q_HTD[:, token, None], torch.tensor([at]), place)[:, 0].unflatten(
                    0, (len(k_UTD), -1)
                )
                weights = (q_UGD @ k_UMD[:, : at + 1].transpose(1, 2)).softmax(-1)
                wanted = (weights @ v_UTD[:, held[: at + 1]]).flatten(0, 1)
                torch.testing.assert_close(out_HTD[:, token], wanted, rtol=1e-3, atol=1e-4)
            held = held[:sinks] + held[sinks:][max(0, len(held) - limit) :]


def test_a_prompt_within_the_budget_is_answered_as_by_the_full_cache(tiny: Tiny) -> None:
    (outs,) = generate(tiny, [prompt(40)], [("streaming_llm_true", 200), ("fullkv", None)])
    assert outs[0].token_ids == outs[1].token_ids


@pytest.mark.parametrize("name", ["qwen2, upper layers slide", "llama4, chunks"])
def test_layers_with_a_window_take_a_fed_prompt_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the budget, the answers are those of the model; each variant has its own row in such layers."""
    model, ids = build(*EXACT[name][:3]), prompt(60)
    steps: list[int] = []
    real = LocalLayer.attend

    def attend(self: LocalLayer, rows: Any, q_BHTD: Tensor, *rest: Any) -> Tensor:
        steps.append(q_BHTD.shape[2])
        return real(self, rows, q_BHTD, *rest)

    monkeypatch.setattr(LocalLayer, "attend", attend)
    asked = [kvbench.Variant(kvbench.load_method("streaming_llm_true", chunk=7), budget) for budget in (90, 20)]
    (outs,) = generate((model, tiny_model()[1]), [ids], asked)
    assert outs[0].token_ids == own_answer(model, ids) != outs[1].token_ids
    assert set(steps) == {1}
    steps.clear()
    ((alone,),) = generate((model, tiny_model()[1]), [ids], asked[1:])
    assert alone.token_ids == outs[1].token_ids


def test_compressed_feeds_the_prompt_too(tiny: Tiny) -> None:
    method = kvbench.load_method("streaming_llm_true", chunk=8)
    ((out,),) = generate(tiny, [prompt(70)], [(method, 24)])
    with kvbench.compressed(tiny[0], method, 24):
        tokens = tiny[0].generate(
            torch.tensor([prompt(70)]), max_new_tokens=len(out.token_ids), do_sample=False, eos_token_id=None
        )
    assert tokens[0, 70:].tolist() == out.token_ids


@pytest.mark.parametrize(
    ("name", "dials", "message"),
    [
        ("streaming_llm_true", {"chunk": 0}, "method.chunk=0: must be at least 1"),
        ("streaming_llm_true", {"phase": "both"}, "method.phase=both: streaming_llm_true has no dial 'phase'. Known: "),
        ("streaming_llm_true", {"sinks": 0}, "method.sinks=0: must be at least 1"),
    ],
)
def test_what_a_feed_cannot_do_is_one_line(name: str, dials: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        kvbench.load_method(name, **dials)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_copies_for_further_questions_do_not_count_as_prefill(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of one question makes none."""
    monkeypatch.setattr(FeedPass, "copies_s", 1000.0)
    (outs,) = generate(tiny, [prompt(40)], [("streaming_llm_true", 24), ("fullkv", None)])
    fed, full = (out.timings.prefill_s for out in outs)
    assert -1000 < fed < -900 and 0 < full < 100
