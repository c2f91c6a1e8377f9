"""The engine on a tiny random model, with all methods that have a configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

import kvbench
from kvbench.engine.variant import Generation
from kvbench.prompts import Prompt
from kvbench.run.record import broken_promise
from tests.helpers.methods import load
from tests.helpers.tiny_engine import METHODS, NEW, Tiny, generate, own_answer, prompt, tiny_model, variants


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_model()


def ids(generations: Sequence[Generation]) -> list[list[int]]:
    return [g.token_ids for g in generations]


def test_the_full_cache_gives_the_tokens_of_generate(tiny: Tiny) -> None:
    for length in (1, 2, 37, 290):
        (out,) = generate(tiny, [prompt(length)], [("fullkv", None)])[0]
        assert out.token_ids == own_answer(tiny[0], prompt(length))


def test_the_first_token_is_that_of_the_full_cache(tiny: Tiny) -> None:
    """Compression changes the stored tokens; the prompt's own attention is complete."""
    shared = [variant for variant in variants() if variant.method.feed is None]  # a feed has no whole prompt
    outs = generate(tiny, [prompt(290)], shared)[0]
    assert len({o.token_ids[0] for o in outs}) == 1
    assert len({tuple(o.token_ids) for o in outs}) > 3, "methods must differ, or nothing is tested here"


@pytest.mark.parametrize("question", ["aware", "agnostic"])
def test_variants_together_give_the_answers_of_each_alone(tiny: Tiny, question: str) -> None:
    asked = variants()
    text = Prompt(ids=tuple(prompt(290)), context_len=270, stop_ids=frozenset(), text="")
    together = generate(tiny, [text], asked, question=question)[0]
    for variant, out in zip(asked, together, strict=True):
        (solo,) = generate(tiny, [text], [variant], question=question)[0]
        assert (solo.token_ids, solo.kept, solo.kv_bytes) == (out.token_ids, out.kept, out.kv_bytes), variant


@pytest.mark.parametrize("question", ["aware", "agnostic"])
def test_ragged_and_masked_caches_give_the_same_answers(tiny: Tiny, question: str) -> None:
    asked = variants()
    text = Prompt(ids=tuple(prompt(290, seed=1)), context_len=270, stop_ids=frozenset(), text="")
    ragged = generate(tiny, [text], asked, question=question)[0]
    masked = generate(tiny, [text], asked, question=question, cache="masked")[0]
    assert ids(ragged) == ids(masked)
    assert [o.kept for o in ragged] == [o.kept for o in masked]
    assert [o.kept_max for o in ragged] == [o.kept_max for o in masked]


def test_order_of_prompts_does_not_matter(tiny: Tiny) -> None:
    asked = variants()
    a, b = prompt(290, seed=2), prompt(140, seed=3)
    both = generate(tiny, [a, b], asked, max_prompts=2)
    (alone,) = generate(tiny, [b], asked)
    assert ids(both[1]) == ids(alone)
    assert [o.kept for o in both[1]] == [o.kept for o in alone]


@pytest.mark.parametrize("question", ["aware", "agnostic"])
@pytest.mark.parametrize("cache", ["ragged", "masked"])
def test_prompts_that_share_a_batch_give_the_answers_of_each_alone(tiny: Tiny, question: str, cache: str) -> None:
    """The prompts differ in length, question, stops and least new tokens; they join when half of the rows have left."""
    asked = variants(names=["fullkv", "snapkv", "ada_pyramidkv", "h2o_decode", "kivi"], budgets=(70,))
    solo, texts = [], []
    for i, (length, question_tokens) in enumerate([(290, 20), (150, 3), (90, 1), (200, 40), (131, 12)]):
        plain = Prompt(
            ids=tuple(prompt(length, seed=i)), context_len=length - question_tokens, stop_ids=frozenset(), text=""
        )
        likely = generate(tiny, [plain], [("fullkv", None)], question=question)[0][0].token_ids[2 * i]
        texts.append(replace(plain, stop_ids=frozenset([likely]), min_new_tokens=i))
        solo.append([generate(tiny, [texts[-1]], [v], question=question)[0][0] for v in asked])
    assert len({g.finish_reason for row in solo for g in row}) == 2, "some rows must leave early, or nothing is tested"
    for rows in (64, 12, 7, 2):
        outs = generate(tiny, texts, asked, question=question, cache=cache, max_rows=rows, max_prompts=5)
        assert [ids(row) for row in outs] == [ids(row) for row in solo]
        assert [[g.kept for g in row] for row in outs] == [[g.kept for g in row] for row in solo]
        assert [[g.kept_max for g in row] for row in outs] == [[g.kept_max for g in row] for row in solo]
        assert max(g.rows for row in outs for g in row) == min(25, {64: 25, 12: 10, 7: 5, 2: 2}[rows])
    assert [len(g.token_ids) for g in outs[3]] >= [4] * len(asked), "stops wait for the least number of tokens"


@pytest.mark.parametrize("length", [71, 72, 120, 290])
def test_budget_is_exact(tiny: Tiny, length: int) -> None:
    """The kept tokens over layers and heads equal the budget exactly, in the cache and in the record."""
    model, _ = tiny
    heads = model.config.num_hidden_layers * model.config.num_key_value_heads
    for variant in variants(budgets=(70, 0.9)):
        (out,) = generate(tiny, [prompt(length)], [variant])[0]
        tokens = out.budget_tokens
        if variant.method.promises == "kept":
            assert tokens == (70 if variant.budget == 70 else int(0.9 * length + 1e-9))
            assert out.kept_total == heads * tokens < heads * length
        elif variant.method.evicts:
            assert tokens is None and 0 < out.kept_total <= heads * length
        else:
            read = variant.method.promises == "read"
            assert (tokens is not None) == read and out.kept_total == heads * length
        assert broken_promise(variant, out) is None


def test_prompt_within_the_budget_is_untouched(tiny: Tiny) -> None:
    full = generate(tiny, [prompt(60)], [("fullkv", None)])[0][0]
    for variant in variants(budgets=(60, 70, 1.0)):
        (out,) = generate(tiny, [prompt(60)], [variant])[0]
        if variant.method.evicts and variant.method.promises is None:
            continue  # no budget says that a prompt is short
        assert out.kept == full.kept, variant
        if variant.method.decode is None and variant.method.store is None:
            assert out.token_ids == full.token_ids


def test_the_check_of_the_runner_finds_broken_methods(tiny: Tiny) -> None:
    """The runner's check fails for a no-op and for a drift."""
    variant = kvbench.Variant(kvbench.load_method("snapkv"), 70)
    (out,) = generate(tiny, [prompt(290)], [variant])[0]
    out.kept[0][0] += 1
    assert "instead of" in str(broken_promise(variant, out))
    out.kept = [[290] * len(layer) for layer in out.kept]
    assert broken_promise(variant, out) is not None
    reference = kvbench.Variant(kvbench.load_method("pyramidkv", allocation="reference"), 70)
    assert broken_promise(reference, out) is not None, "a no-op is no rounding"


def test_decode_policy_holds_the_budget_while_generating(tiny: Tiny) -> None:
    (out,) = generate(tiny, [prompt(290)], [("h2o_decode", 70)])[0]
    assert out.kept_max == 70
    short = Prompt(ids=tuple(prompt(65)), context_len=65, stop_ids=frozenset(), text="")
    (out,) = generate(tiny, [short], [("h2o_decode", 70)])[0]
    assert out.kept_max == 70, "a prompt below the budget grows to it and no further"


def test_memory_of_a_quarter_budget(tiny: Tiny) -> None:
    model, tokenizer = tiny
    asked = variants([m for m in METHODS if load(m).promises == "kept"], (0.25,))
    outs = kvbench.generate(model, tokenizer, [prompt(1000)], asked, max_new_tokens=32, stop_ids=[])[0]
    for variant, out in zip(asked, outs, strict=True):
        assert out.kv_bytes * 4 == out.kv_bytes_full
        assert out.kv_bytes + out.slack_bytes <= 0.35 * out.kv_bytes_full, variant


def test_stop_ids_end_a_row_and_only_that_row(tiny: Tiny) -> None:
    asked = variants()
    free = generate(tiny, [prompt(290)], asked)[0]
    stop = free[0].token_ids[3]
    text = Prompt(ids=tuple(prompt(290)), context_len=290, stop_ids=frozenset([stop]), text="")
    for out, long in zip(generate(tiny, [text], asked)[0], free, strict=True):
        if stop in long.token_ids:
            assert out.finish_reason == "stop"
            assert out.token_ids == long.token_ids[: long.token_ids.index(stop) + 1]
        else:
            assert (out.finish_reason, out.token_ids) == ("length", long.token_ids)


@pytest.mark.parametrize("least", [0, 1, 3])
def test_min_new_tokens_acts_as_in_transformers(tiny: Tiny, least: int) -> None:
    model, _ = tiny
    tokens = prompt(40)
    mask = torch.ones(1, 40, dtype=torch.long)
    common = {"attention_mask": mask, "do_sample": False}
    free = model.generate(torch.tensor([tokens]), max_new_tokens=NEW, eos_token_id=None, **common)[0, 40:].tolist()
    stops = free[:3]  # each would end the answer early
    wanted = model.generate(
        torch.tensor([tokens]), max_new_tokens=NEW, min_length=40 + least, eos_token_id=stops, **common
    )
    text = Prompt(tuple(tokens), 40, frozenset(stops), "", min_new_tokens=least)
    ((out,),) = kvbench.generate(*tiny, [text], [("fullkv", None)], max_new_tokens=NEW)
    assert out.token_ids == wanted[0, 40:].tolist() and len(out.token_ids) > least


def test_a_first_token_that_may_not_stop(tiny: Tiny) -> None:
    free = generate(tiny, [prompt(40)], [("fullkv", None)])[0][0].token_ids
    text = Prompt(tuple(prompt(40)), 40, frozenset([free[0]]), "", first_may_stop=False)
    ((out,),) = kvbench.generate(*tiny, [text], [("fullkv", None)], max_new_tokens=NEW)
    later = free.index(free[0], 1) + 1 if free[0] in free[1:] else NEW
    assert out.token_ids == free[:later]


def test_agnostic_compresses_the_context_alone(tiny: Tiny) -> None:
    """The kept tokens do not depend on the question; with a full budget the answer is that of the full cache."""
    context = prompt(200, seed=5)
    texts = [Prompt(tuple(context + prompt(20, seed=s)), 200, frozenset(), "") for s in (6, 7)]
    asked = variants()
    first, second = generate(tiny, texts, asked, question="agnostic")
    assert [o.kept for o in first] == [o.kept for o in second]
    assert all(o.span == 200 and o.prompt_tokens == 220 for o in first)
    whole = generate(tiny, [texts[0]], [("fullkv", None)], question="aware")[0]
    agnostic = generate(tiny, [texts[0]], [("fullkv", None)], question="agnostic")[0]
    assert ids(whole) == ids(agnostic)


def test_impossible_budget_is_an_error(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"budget=0\.1 \(of 290 tokens: 29\).*method\.window=32"):
        generate(tiny, [prompt(290)], [("snapkv", 0.1)])
    with pytest.raises(ValueError, match="variants: give at least one"):
        generate(tiny, [prompt(290)], [])
    for name in ("max_rows", "max_prompts", "max_new_tokens"):
        with pytest.raises(ValueError, match=f"^{name}=0: must be at least 1$"):
            generate(tiny, [prompt(290)], [("fullkv", None)], **{name: 0})
    with pytest.raises(ValueError, match="engine.cache=paged"):
        generate(tiny, [prompt(290)], [("fullkv", None)], cache="paged")
    with pytest.raises(ValueError, match="budget=16: fullkv keeps every token"):
        generate(tiny, [prompt(290)], [("fullkv", 16)])
    with pytest.raises(ValueError, match="not one string"):
        generate(tiny, "a prompt", [("fullkv", None)])
    with pytest.raises(ValueError, match="question=agnostc"):
        generate(tiny, [prompt(290)], [("fullkv", None)], question="agnostc")
    with pytest.raises(ValueError, match="needs a context and a question"):
        generate(tiny, [prompt(290)], [("fullkv", None)], question="agnostic")
    with pytest.raises(ValueError, match="budget=1.0 .*h2o_decode always keeps 300"):
        generate(tiny, [prompt(290)], [(kvbench.load_method("h2o_decode", window=300), 1.0)])


def test_the_model_is_unchanged_afterwards(tiny: Tiny) -> None:
    model, _ = tiny
    assert model.config._attn_implementation == "sdpa"
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("variants", "tokenizer", "message"),
    [
        (["snapkv"], True, "variants: 'snapkv' is no pair; give a list of pairs"),
        ("snapkv", True, "variants: 's' is no pair"),
        (("snapkv", 40), True, "variants: 'snapkv' is no pair"),
        ([("snapkv", "0.2")], True, "budget='0.2': is a text; give the number without quotes, budget=0.2"),
        ([("snapkv", 40)], False, "tokenizer=None: give the tokenizer of the model"),
    ],
)
def test_first_mistakes_from_python_are_one_line(variants: Any, tokenizer: bool, message: str) -> None:
    loaded = kvbench.load_model("tiny")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as refused:
        kvbench.generate(
            loaded.model, loaded.tokenizer if tokenizer else cast(Any, None), [prompt(60)], variants, max_new_tokens=2
        )
    assert "\n" not in str(refused.value)
