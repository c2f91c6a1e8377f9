"""Answers depend on the prompt alone, not on earlier prompts or on other prompts of the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Phi3Config, Phi3ForCausalLM

import kvbench
from kvbench.engine.limits import RequestLimits
from kvbench.engine.observed import observed_steps
from kvbench.engine.probe import checked_plan
from kvbench.engine.requests import row_errors
from kvbench.engine.variant import Request
from kvbench.prompts import Prompt
from tests.helpers.tiny_engine import NEW, generate, own_answer, prompt, tiny_model

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
TRAINED = 128  # positions, without scaling


def scaled(kind: str) -> Any:
    """Return a model whose rotary frequencies scale with the text beyond `TRAINED` positions."""
    torch.manual_seed(0)
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]}
        rope |= {"original_max_position_embeddings": TRAINED}
        config = Phi3Config(**SIZES, original_max_position_embeddings=TRAINED, rope_parameters=rope)
        return Phi3ForCausalLM(config).eval()
    rope |= {"factor": 4.0} if kind == "dynamic" else {}
    positions = TRAINED if kind == "dynamic" else 2 * TRAINED
    return LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=positions, rope_parameters=rope)).eval()


def tokenizer() -> Any:
    return tiny_model()[1]


@pytest.mark.parametrize("kind", ["default", "dynamic", "longrope"])
def test_a_long_neighbour_changes_no_frequencies(kind: str) -> None:
    """Some rotary embeddings take their frequencies from the longest row of a forward call."""
    model = scaled(kind)
    short, long = prompt(60, seed=1), prompt(200, seed=2)
    expected = own_answer(model, short)
    outs = generate((model, tokenizer()), [short, long], [("fullkv", None)], max_prompts=2)
    assert outs[0][0].token_ids == expected
    assert outs[0][0].rows == (2 if kind == "default" else 1)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("length", [60, 150])
def test_earlier_prompts_change_nothing(kind: str, length: int) -> None:
    """transformers keeps the frequencies of the longest text so far on the module."""
    ids = prompt(length, seed=1)
    fresh = own_answer(scaled(kind), ids)
    tiny = scaled(kind), tokenizer()
    asked = [("fullkv", None), ("snapkv", 50)]
    (alone,) = generate(tiny, [ids], asked)
    assert alone[0].token_ids == fresh
    after = generate(tiny, [prompt(240, seed=2), ids], asked)[1]
    assert [g.token_ids for g in after] == [g.token_ids for g in alone]
    own_answer(tiny[0], prompt(240, seed=3))  # plain transformers leaves its frequencies on the module as well
    (again,) = generate(tiny, [ids], asked)
    assert [g.token_ids for g in again] == [g.token_ids for g in alone]
    with kvbench.compressed(tiny[0], "fullkv"):
        own_answer(tiny[0], prompt(240, seed=3))
        assert own_answer(tiny[0], ids) == fresh


def test_dynamic_frequencies_grow_with_the_answer_as_in_generate() -> None:
    ids = prompt(TRAINED - 4, seed=1)
    expected = own_answer(scaled("dynamic"), ids)
    (out,) = generate((scaled("dynamic"), tokenizer()), [ids], [("fullkv", None)])[0]
    assert out.token_ids == expected


def test_an_answer_that_crosses_the_switch_of_longrope_is_refused() -> None:
    tiny = scaled("longrope"), tokenizer()
    line = f"cross the {TRAINED} tokens at which .*give max_new_tokens=5 at most"
    with pytest.raises(ValueError, match=line):
        generate(tiny, [prompt(TRAINED - 4)], [("fullkv", None)])
    for length in (TRAINED - NEW + 1, TRAINED + 1):
        (out,) = generate(tiny, [prompt(length)], [("fullkv", None)])[0]
        assert out.token_ids == own_answer(scaled("longrope"), prompt(length))


@pytest.mark.parametrize(("context", "length"), [(TRAINED, TRAINED + 1), (TRAINED - 10, TRAINED + 6)])
def test_a_question_beyond_the_switch_of_longrope_is_refused(context: int, length: int) -> None:
    """The context's keys would have the short frequencies, and the question's the long ones."""
    model = scaled("longrope")
    asked = Prompt(tuple(prompt(length)), context_len=context, stop_ids=frozenset(), text="")
    line = f"a prompt of {length} tokens .*, of which {context} tokens are read first, cross .*; shorten the prompt$"
    with pytest.raises(ValueError, match=line):
        generate((model, tokenizer()), [asked], [("fullkv", None)], question="agnostic")
    limits = RequestLimits(model, checked_plan(model))
    request = Request.of(asked, [kvbench.Variant(kvbench.load_method("fullkv"))], NEW)
    assert "cross the" in row_errors(request, "agnostic", limits, model, tokenizer())[0]
    assert row_errors(request, "aware", limits, model, tokenizer()) == {}
    (out,) = generate((model, tokenizer()), [asked], [("fullkv", None)])[0]
    assert out.token_ids == own_answer(scaled("longrope"), prompt(length))


@pytest.mark.parametrize(
    ("span", "tokens", "crosses"),
    [(TRAINED - 1, 1, False), (TRAINED - 1, 2, True), (TRAINED, 1, True), (TRAINED + 1, 9, False)],
)
def test_a_second_pass_does_not_cross_the_switch_of_longrope(span: int, tokens: int, crosses: bool) -> None:
    model = scaled("longrope")
    error = RequestLimits(model, checked_plan(model)).pass_error("kvzip", span, tokens)
    assert (error is not None and f"rotary frequencies at {TRAINED} tokens" in error) == crosses, error


def test_observed_steps_do_not_cross_the_switch_either() -> None:
    """The last token of the prompt is the input of the first step."""
    model = scaled("longrope")
    with pytest.raises(ValueError, match=f"of which {TRAINED} tokens are read first, cross"):
        list(observed_steps(model, prompt(TRAINED + 1), NEW, ()))
    for length in (TRAINED - NEW + 1, TRAINED + 2):
        tokens = [token for token, _ in observed_steps(model, prompt(length), NEW, ())]
        assert tokens == own_answer(scaled("longrope"), prompt(length))


def test_compressed_does_not_take_a_dropped_cache_for_a_new_prompt() -> None:
    """At the switch, `generate` of Phi-3 drops its cache and gives the whole text to the model again."""
    model, length = scaled("longrope"), TRAINED - 3
    with kvbench.compressed(model, "streaming_llm", 40):
        with pytest.raises(ValueError, match=f"cross the {TRAINED} tokens .*give max_new_tokens=4 at most"):
            own_answer(model, prompt(length), 8)
        assert own_answer(model, prompt(length), 4)
        other = own_answer(model, prompt(TRAINED + 1, seed=9), 4)
    fresh = scaled("longrope")
    with kvbench.compressed(fresh, "streaming_llm", 40):
        assert own_answer(fresh, prompt(TRAINED + 1, seed=9), 4) == other, "another prompt is a new one"


@pytest.mark.parametrize("compress", [False, True])
def test_a_window_of_all_layers_is_a_limit(compress: bool) -> None:
    """Within the window the answer is the model's own; beyond it there is an error, not a wrong answer."""
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=32)).eval()

    def answer(length: int) -> list[int]:
        if not compress:
            return generate((model, tokenizer()), [prompt(length)], [("fullkv", None)])[0][0].token_ids
        with kvbench.compressed(model, "fullkv"):
            return own_answer(model, prompt(length))

    assert answer(33 - NEW) == own_answer(model, prompt(33 - NEW))
    with pytest.raises(ValueError, match="looks back 32 tokens only"):
        answer(34 - NEW)
