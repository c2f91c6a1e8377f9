"""Every method of conf/method/, on models and prompts of drawn shapes: its answer depends on nothing but the prompt.

Each drawn example runs all methods in one plan. It compares with the masked cache, with each method alone, with prompts
that share a batch, and with another order of the variants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kvbench
from kvbench.engine.variant import Generation
from kvbench.prompts import Prompt
from kvbench.run.record import broken_promise
from tests.helpers.methods import budget_for, load, shipped

NEW = 5
# in the place of what suits prompts of thousands of tokens and models of many layers
SMALL = {"window": 5, "recent": 5, "page": 3, "localization": "top_half-5", "aggregation": "average-3", "shared": 2}


@dataclass(frozen=True)
class World:
    """A model of a drawn shape, a prompt, and a budget."""

    layers: int
    kv_heads: int
    group: int
    tokens: int
    asked: int
    budget: int | float
    agnostic: bool
    seed: int

    @property
    def question(self) -> str:
        return "agnostic" if self.agnostic else "aware"

    @property
    def span(self) -> int:
        return self.tokens - self.asked if self.agnostic else self.tokens

    @property
    def model(self) -> Any:
        return tiny(self.layers, self.kv_heads, self.group)

    def prompt(self, other: int = 0) -> Prompt:
        g = torch.Generator().manual_seed(self.seed + other)
        ids = torch.randint(3, 260, (self.tokens + 7 * other,), generator=g).tolist()
        return Prompt(tuple(ids), len(ids) - self.asked, frozenset(), "")

    def variants(self) -> list[kvbench.Variant]:
        out = []
        for name in shipped():
            dials = {dial: value for dial, value in SMALL.items() if dial in shipped()[name].dials}
            method = load(name, self.layers, self.kv_heads * self.group, **dials)
            out.append(kvbench.Variant(method, budget_for(method, self.budget)))
        return out

    def run(self, prompts: Sequence[Prompt], variants: Sequence[Any], **more: Any) -> list[list[Generation]]:
        loaded = self.model
        asked: dict[str, Any] = {"max_new_tokens": NEW, "stop_ids": [], "question": self.question} | more
        return kvbench.generate(loaded.model, loaded.tokenizer, prompts, variants, **asked)


@lru_cache(maxsize=8)
def tiny(layers: int, kv_heads: int, group: int) -> Any:
    dims = dict(kvbench.load_model("tiny").model.config.to_dict())
    names = ("hidden_size", "intermediate_size", "head_dim", "vocab_size", "max_position_embeddings")
    sizes = {name: dims[name] for name in names} | {"initializer_range": 0.2, "num_hidden_layers": layers}
    heads = {"num_attention_heads": kv_heads * group, "num_key_value_heads": kv_heads}
    return kvbench.load_model("tiny", dims=sizes | {"hidden_size": 16 * kv_heads * group} | heads)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    tokens, asked = draw(st.integers(24, 150)), draw(st.integers(1, 9))
    budget = draw(st.one_of(st.integers(12, 60), st.sampled_from([0.45, 0.5, 0.71, 0.9])))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return World(*shape, tokens + asked, asked, budget, draw(st.booleans()), draw(st.integers(0, 99)))


drawn = settings(max_examples=3, deadline=None, derandomize=True, database=None)


def facts(generation: Generation) -> tuple[object, ...]:
    """Return what must not depend on how a row was computed."""
    return generation.token_ids, generation.kept, generation.kept_max, generation.budget_tokens


def differences(variants: Sequence[Any], ours: Sequence[Generation], theirs: Sequence[Generation]) -> list[str]:
    return [str(v) for v, a, b in zip(variants, ours, theirs, strict=True) if facts(a) != facts(b)]


@drawn
@given(world=worlds())
def test_ragged_and_masked_caches_agree(world: World) -> None:
    variants = world.variants()
    ragged, masked = (world.run([world.prompt()], variants, cache=cache)[0] for cache in ("ragged", "masked"))
    assert differences(variants, ragged, masked) == []


@drawn
@given(world=worlds())
def test_a_row_alone_and_in_another_order_gives_the_same(world: World) -> None:
    variants = world.variants()
    together = world.run([world.prompt()], variants)[0]
    alone = [world.run([world.prompt()], [variant])[0][0] for variant in variants]
    assert differences(variants, together, alone) == []
    for a, b in zip(together, alone, strict=True):
        assert a.kv_bytes == b.kv_bytes
    turned = world.run([world.prompt()], variants[::-1])[0][::-1]
    assert differences(variants, together, turned) == []


@drawn
@given(world=worlds())
def test_prompts_in_one_batch_give_the_answers_of_each_alone(world: World) -> None:
    variants, prompts = world.variants(), [world.prompt(), world.prompt(other=3)]
    both = world.run(prompts, variants, max_prompts=2)
    for prompt, rows in zip(prompts, both, strict=True):
        assert differences(variants, rows, world.run([prompt], variants)[0]) == []


@drawn
@given(world=worlds())
def test_a_method_keeps_what_it_promises(world: World) -> None:
    """Kept tokens add up to the budget, or are all tokens, or are measured and within what the method always keeps."""
    heads = world.layers * world.kv_heads
    for variant, out in zip(world.variants(), world.run([world.prompt()], world.variants())[0], strict=True):
        assert broken_promise(variant, out) is None and out.span == world.span
        assert out.error is None and len(out.token_ids) == NEW
        if variant.method.evicts and variant.method.promises is None:
            assert out.budget_tokens is None and heads <= out.kept_total <= heads * world.span


@drawn
@given(world=worlds())
def test_compressed_gives_the_answers_of_generate(world: World) -> None:
    loaded, prompt = world.model, world.prompt()
    ids = torch.tensor([prompt.ids])
    asked: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None}
    for variant in world.variants():
        (out,) = kvbench.generate(
            loaded.model, loaded.tokenizer, [list(prompt.ids)], [variant], max_new_tokens=NEW, stop_ids=[]
        )[0]
        with kvbench.compressed(loaded.model, variant.method, variant.budget, tokenizer=loaded.tokenizer):
            answer = loaded.model.generate(ids, max_new_tokens=NEW, **asked)[0, ids.shape[1] :].tolist()
        assert answer == out.token_ids, variant
