"""The engine on a tiny random model: every method there is, found by glob."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

import kvbench
from kvbench.config import options
from kvbench.engine.variant import Generation
from kvbench.prompts import Prompt
from kvbench.run.record import broken_promise

METHODS = sorted(options("method"))
BUDGETS = (70, 0.4)
NEW = 12


@pytest.fixture(scope="module")
def tiny():
    loaded = kvbench.load_model("tiny")
    return loaded.model, loaded.tokenizer


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 260, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def variants(names=METHODS, budgets=BUDGETS):
    return [kvbench.Variant(kvbench.load_method(n), b) for n in names for b in budgets]


def generate(tiny, prompts, made, **kwargs) -> list[list[Generation]]:
    return kvbench.generate(*tiny, prompts, made, max_new_tokens=NEW, stop_ids=[], **kwargs)


def ids(generations):
    return [g.token_ids for g in generations]


def test_full_cache_is_transformers_generate(tiny):
    model, _ = tiny
    for length in (1, 2, 37, 290):
        tokens = torch.tensor([prompt(length)])
        mask = torch.ones_like(tokens)
        wanted = model.generate(tokens, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        (out,) = generate(tiny, [tokens[0].tolist()], [("fullkv", None)])[0]
        assert out.token_ids == wanted[0, length:].tolist()


def test_first_token_is_the_full_caches(tiny):
    """Compression acts on what is stored; the prompt's own attention is complete."""
    outs = generate(tiny, [prompt(290)], variants())[0]
    assert len({o.token_ids[0] for o in outs}) == 1
    assert len({tuple(o.token_ids) for o in outs}) > 3, "methods must differ, or nothing is tested here"


@pytest.mark.parametrize("question", ["aware", "agnostic"])
def test_fused_is_solo(tiny, question):
    made = variants()
    text = Prompt(ids=tuple(prompt(290)), context_len=270, stop_ids=frozenset(), text="")
    together = generate(tiny, [text], made, question=question)[0]
    for variant, out in zip(made, together, strict=True):
        (solo,) = generate(tiny, [text], [variant], question=question)[0]
        assert (solo.token_ids, solo.kept, solo.kv_bytes) == (out.token_ids, out.kept, out.kv_bytes), variant


@pytest.mark.parametrize("question", ["aware", "agnostic"])
def test_ragged_is_masked(tiny, question):
    made = variants()
    text = Prompt(ids=tuple(prompt(290, seed=1)), context_len=270, stop_ids=frozenset(), text="")
    ragged = generate(tiny, [text], made, question=question)[0]
    masked = generate(tiny, [text], made, question=question, cache="masked")[0]
    assert ids(ragged) == ids(masked)
    assert [o.kept for o in ragged] == [o.kept for o in masked]
    assert [o.kept_max for o in ragged] == [o.kept_max for o in masked]


def test_order_of_prompts_does_not_matter(tiny):
    made = variants()
    a, b = prompt(290, seed=2), prompt(140, seed=3)
    both = generate(tiny, [a, b], made, max_prompts=2)
    (alone,) = generate(tiny, [b], made)
    assert ids(both[1]) == ids(alone)
    assert [o.kept for o in both[1]] == [o.kept for o in alone]


@pytest.mark.parametrize("question", ["aware", "agnostic"])
@pytest.mark.parametrize("cache", ["ragged", "masked"])
def test_prompts_that_share_a_batch_are_as_alone(tiny, question, cache):
    """Other lengths, questions, stops and least numbers; joining whenever half of the rows have left."""
    made = variants(names=["fullkv", "snapkv", "ada_pyramidkv", "h2o_decode", "kivi"], budgets=(70,))
    solo, texts = [], []
    for i, (length, asked) in enumerate([(290, 20), (150, 3), (90, 1), (200, 40), (131, 12)]):
        plain = Prompt(ids=tuple(prompt(length, seed=i)), context_len=length - asked, stop_ids=frozenset(), text="")
        likely = generate(tiny, [plain], [("fullkv", None)], question=question)[0][0].token_ids[2 * i]
        texts.append(replace(plain, stop_ids=frozenset([likely]), min_new_tokens=i))
        solo.append([generate(tiny, [texts[-1]], [v], question=question)[0][0] for v in made])
    assert len({g.finish_reason for row in solo for g in row}) == 2, "some rows must leave early, or nothing is tested"
    for rows in (64, 12, 7, 2):
        outs = generate(tiny, texts, made, question=question, cache=cache, max_rows=rows, max_prompts=5)
        assert [ids(row) for row in outs] == [ids(row) for row in solo]
        assert [[g.kept for g in row] for row in outs] == [[g.kept for g in row] for row in solo]
        assert [[g.kept_max for g in row] for row in outs] == [[g.kept_max for g in row] for row in solo]
        assert max(g.rows for row in outs for g in row) == min(25, {64: 25, 12: 10, 7: 5, 2: 2}[rows])
    assert [len(g.token_ids) for g in outs[3]] >= [4] * len(made), "stops wait for the least number of tokens"


@pytest.mark.parametrize("kind", ["default", "dynamic", "longrope"])
def test_a_long_neighbour_changes_no_frequencies(tiny, kind):
    """Some rotary embeddings take their frequencies from a forward call's longest row: Phi-3's, and dynamic scaling."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    common = sizes | {"num_key_value_heads": 2, "vocab_size": 300, "initializer_range": 0.3}
    common |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    rope: dict = {"rope_type": kind, "rope_theta": 10000.0}
    torch.manual_seed(0)
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]}
        rope |= {"original_max_position_embeddings": 128}
        config = Phi3Config(**common, original_max_position_embeddings=128, rope_parameters=rope)
        model = Phi3ForCausalLM(config).eval()
    else:
        rope |= {"factor": 4.0} if kind == "dynamic" else {}
        positions = 128 if kind == "dynamic" else 256
        model = LlamaForCausalLM(LlamaConfig(**common, max_position_embeddings=positions, rope_parameters=rope)).eval()
    short, long = prompt(60, seed=1), prompt(200, seed=2)
    mask = torch.ones(1, 60, dtype=torch.long)
    wanted = model.generate(torch.tensor([short]), attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    outs = generate((model, tiny[1]), [short, long], [("fullkv", None)], max_prompts=2)
    assert outs[0][0].token_ids == wanted[0, 60:].tolist()
    assert outs[0][0].rows == (2 if kind == "default" else 1)


@pytest.mark.parametrize("length", [71, 72, 120, 290])
def test_budget_is_exact(tiny, length):
    """Kept tokens over layers and heads are the budget to the token, and the record says so."""
    model, _ = tiny
    heads = model.config.num_hidden_layers * model.config.num_key_value_heads
    for variant in variants(budgets=(70, 0.9)):
        (out,) = generate(tiny, [prompt(length)], [variant])[0]
        tokens = out.budget_tokens
        if variant.method.evicts:
            assert tokens == (70 if variant.budget == 70 else int(0.9 * length + 1e-9))
            assert out.kept_total == heads * tokens < heads * length
        else:
            assert tokens is None and out.kept_total == heads * length
        assert broken_promise(variant, out) is None


def test_prompt_within_the_budget_is_untouched(tiny):
    full = generate(tiny, [prompt(60)], [("fullkv", None)])[0][0]
    for variant in variants(budgets=(60, 70, 1.0)):
        (out,) = generate(tiny, [prompt(60)], [variant])[0]
        assert out.kept == full.kept, variant
        if variant.method.decode is None and variant.method.store is None:
            assert out.token_ids == full.token_ids


def test_a_broken_promise_is_seen(tiny):
    """The runner's check fails for a no-op and for a drift."""
    variant = kvbench.Variant(kvbench.load_method("snapkv"), 70)
    (out,) = generate(tiny, [prompt(290)], [variant])[0]
    out.kept[0][0] += 1
    assert "instead of" in str(broken_promise(variant, out))
    out.kept = [[290] * len(layer) for layer in out.kept]
    assert broken_promise(variant, out) is not None
    reference = kvbench.Variant(kvbench.load_method("pyramidkv", allocation="reference"), 70)
    assert broken_promise(reference, out) is not None, "a no-op is no rounding"


def test_decode_policy_holds_the_budget_while_generating(tiny):
    (out,) = generate(tiny, [prompt(290)], [("h2o_decode", 70)])[0]
    assert out.kept_max == 70
    short = Prompt(ids=tuple(prompt(65)), context_len=65, stop_ids=frozenset(), text="")
    (out,) = generate(tiny, [short], [("h2o_decode", 70)])[0]
    assert out.kept_max == 70, "a prompt below the budget grows to it and no further"


def test_memory_of_a_quarter_budget(tiny):
    model, tokenizer = tiny
    made = variants([m for m in METHODS if kvbench.load_method(m).evicts], (0.25,))
    outs = kvbench.generate(model, tokenizer, [prompt(1000)], made, max_new_tokens=32, stop_ids=[])[0]
    for variant, out in zip(made, outs, strict=True):
        assert out.kv_bytes * 4 == out.kv_bytes_full
        assert out.kv_bytes + out.slack_bytes <= 0.35 * out.kv_bytes_full, variant


def test_stop_ids_end_a_row_and_only_that_row(tiny):
    made = variants()
    free = generate(tiny, [prompt(290)], made)[0]
    stop = free[0].token_ids[3]
    text = Prompt(ids=tuple(prompt(290)), context_len=290, stop_ids=frozenset([stop]), text="")
    for out, long in zip(generate(tiny, [text], made)[0], free, strict=True):
        if stop in long.token_ids:
            assert out.finish_reason == "stop"
            assert out.token_ids == long.token_ids[: long.token_ids.index(stop) + 1]
        else:
            assert (out.finish_reason, out.token_ids) == ("length", long.token_ids)


@pytest.mark.parametrize("least", [0, 1, 3])
def test_min_new_tokens_is_that_of_transformers(tiny, least):
    model, _ = tiny
    tokens = prompt(40)
    mask = torch.ones(1, 40, dtype=torch.long)
    common = {"attention_mask": mask, "do_sample": False}
    free = model.generate(torch.tensor([tokens]), max_new_tokens=NEW, eos_token_id=None, **common)[0, 40:].tolist()
    stops = free[:3]  # would end the answer at once
    wanted = model.generate(
        torch.tensor([tokens]), max_new_tokens=NEW, min_length=40 + least, eos_token_id=stops, **common
    )
    text = Prompt(tuple(tokens), 40, frozenset(stops), "", min_new_tokens=least)
    ((out,),) = kvbench.generate(*tiny, [text], [("fullkv", None)], max_new_tokens=NEW)
    assert out.token_ids == wanted[0, 40:].tolist() and len(out.token_ids) > least


def test_a_first_token_that_may_not_stop(tiny):
    free = generate(tiny, [prompt(40)], [("fullkv", None)])[0][0].token_ids
    text = Prompt(tuple(prompt(40)), 40, frozenset([free[0]]), "", first_may_stop=False)
    ((out,),) = kvbench.generate(*tiny, [text], [("fullkv", None)], max_new_tokens=NEW)
    later = free.index(free[0], 1) + 1 if free[0] in free[1:] else NEW
    assert out.token_ids == free[:later]


def test_agnostic_compresses_the_context_alone(tiny):
    """What is kept does not depend on the question; with a full budget the answer is the full cache's."""
    context = prompt(200, seed=5)
    texts = [Prompt(tuple(context + prompt(20, seed=s)), 200, frozenset(), "") for s in (6, 7)]
    made = variants()
    first, second = generate(tiny, texts, made, question="agnostic")
    assert [o.kept for o in first] == [o.kept for o in second]
    assert all(o.span == 200 and o.prompt_tokens == 220 for o in first)
    whole = generate(tiny, [texts[0]], [("fullkv", None)], question="aware")[0]
    agnostic = generate(tiny, [texts[0]], [("fullkv", None)], question="agnostic")[0]
    assert ids(whole) == ids(agnostic)


def test_compressed_runs_plain_transformers_code(tiny):
    model, _ = tiny
    tokens = torch.tensor([prompt(290)])
    settings = {
        "attention_mask": torch.ones_like(tokens),
        "max_new_tokens": NEW,
        "do_sample": False,
        "eos_token_id": None,
    }
    before = model.generate(tokens, **settings)
    for variant in variants():
        budget = variant.budget if variant.method.evicts else None
        with kvbench.compressed(model, variant.method, budget) as handle:
            first = model.generate(tokens, **settings)
            second = model.generate(tokens, **settings)
        (out,) = generate(tiny, [tokens[0].tolist()], [variant])[0]
        assert first[0, 290:].tolist() == out.token_ids == second[0, 290:].tolist()
        if variant.method.decode is None:
            assert [[n - NEW + 1 for n in layer] for layer in handle.cache.kept] == out.kept
    assert torch.equal(before, model.generate(tokens, **settings)), "everything is as before"


def test_compressed_refuses_what_it_cannot_do(tiny):
    model, _ = tiny
    with kvbench.compressed(model, "snapkv", 70):
        with pytest.raises(ValueError, match="one unpadded sequence"):
            model(torch.tensor([prompt(80), prompt(80)]))
        with pytest.raises(ValueError, match="one unpadded sequence"):
            model(torch.tensor([prompt(80)]), attention_mask=torch.tensor([[0] + [1] * 79]))


def test_compressed_takes_over_the_callers_cache(tiny):
    """A hand-written loop with a cache of its own gives what `generate` gives."""
    from transformers import DynamicCache

    model, _ = tiny
    tokens = torch.tensor([prompt(100)])
    (out,) = generate(tiny, [tokens[0].tolist()], [("snapkv", 70)])[0]
    with kvbench.compressed(model, "snapkv", 70):
        mine, found = DynamicCache(), []
        for _ in range(NEW):
            tokens = model(tokens, past_key_values=mine, use_cache=True).logits[:, -1:].argmax(-1)
            found.append(int(tokens))
    assert found == out.token_ids


def test_compressed_refuses_to_do_nothing(tiny):
    model, _ = tiny
    with kvbench.compressed(model, "snapkv", 70):
        with pytest.raises(ValueError, match="use_cache=True"):
            model(torch.tensor([prompt(80)]), use_cache=False)
        with pytest.raises(ValueError, match="cannot run inside"):
            generate(tiny, [prompt(80)], [("fullkv", None)])


@pytest.mark.parametrize("compress", [False, True])
def test_sliding_windows_are_refused_before_they_matter(compress):
    """Within the window the answer is right; beyond it there is an error, not a wrong answer."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=300, num_key_value_heads=2, sliding_window=32, eos_token_id=None, **sizes)
    model = MistralForCausalLM(config).eval()
    tokenizer = kvbench.load_model("tiny").tokenizer

    def run(length: int) -> list[int]:
        tokens = torch.tensor([prompt(length)])
        if not compress:
            return kvbench.generate(model, tokenizer, [tokens[0].tolist()], [("fullkv", None)], max_new_tokens=10)[0][
                0
            ].token_ids
        with kvbench.compressed(model, "fullkv"):
            return model.generate(tokens, max_new_tokens=10, do_sample=False)[0, length:].tolist()

    wanted = model.generate(torch.tensor([prompt(20)]), max_new_tokens=10, do_sample=False)[0, 20:].tolist()
    assert run(20) == wanted
    with pytest.raises(ValueError, match="looks back 32 tokens"):
        run(28)


def test_impossible_budget_is_an_error(tiny):
    with pytest.raises(ValueError, match=r"budget=0\.1 \(of 290 tokens: 29\).*method\.window=32"):
        generate(tiny, [prompt(290)], [("snapkv", 0.1)])
    with pytest.raises(ValueError, match="at least one variant"):
        generate(tiny, [prompt(290)], [])
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


def test_model_is_left_as_it_was(tiny):
    model, _ = tiny
    assert model.config._attn_implementation == "sdpa"
    assert not model._forward_pre_hooks
