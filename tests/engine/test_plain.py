"""Plain transformers code inside `kvbench.compressed`."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import kvbench
from tests.helpers.tiny_engine import NEW, Tiny, generate, own_answer, prompt, tiny_model, variants


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_model()


def test_compressed_runs_plain_transformers_code(tiny: Tiny) -> None:
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
        with kvbench.compressed(model, variant.method, variant.budget, tokenizer=tiny[1]) as handle:
            first = model.generate(tokens, **settings)
            second = model.generate(tokens, **settings)
        (out,) = generate(tiny, [tokens[0].tolist()], [variant])[0]
        assert first[0, 290:].tolist() == out.token_ids == second[0, 290:].tolist()
        if variant.method.decode is None:
            assert [[n - NEW + 1 for n in layer] for layer in handle.cache.kept] == out.kept
    assert torch.equal(before, model.generate(tokens, **settings)), "everything is as before"


def test_compressed_refuses_unsupported_calls(tiny: Tiny) -> None:
    model, _ = tiny
    with kvbench.compressed(model, "snapkv", 70):
        with pytest.raises(ValueError, match="one unpadded sequence"):
            model(torch.tensor([prompt(80), prompt(80)]))
        with pytest.raises(ValueError, match="one unpadded sequence"):
            model(torch.tensor([prompt(80)]), attention_mask=torch.tensor([[0] + [1] * 79]))


def test_compressed_takes_over_the_callers_cache(tiny: Tiny) -> None:
    """A hand-written loop with a cache of its own gives the tokens of `generate`."""
    model, _ = tiny
    tokens = torch.tensor([prompt(100)])
    (out,) = generate(tiny, [tokens[0].tolist()], [("snapkv", 70)])[0]
    with kvbench.compressed(model, "snapkv", 70):
        cache, answer = DynamicCache(), []
        for _ in range(NEW):
            tokens = model(tokens, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
            answer.append(int(tokens))
    assert answer == out.token_ids


def test_compressed_refuses_to_do_nothing(tiny: Tiny) -> None:
    model, _ = tiny
    with kvbench.compressed(model, "snapkv", 70):
        with pytest.raises(ValueError, match="use_cache=True"):
            model(torch.tensor([prompt(80)]), use_cache=False)
        with pytest.raises(ValueError, match="cannot run inside"):
            generate(tiny, [prompt(80)], [("fullkv", None)])


def test_a_block_that_never_calls_the_model_is_an_error(tiny: Tiny) -> None:
    with (
        pytest.raises(ValueError, match="the block did not call the model"),
        kvbench.compressed(tiny[0], "snapkv", 70),
    ):
        pass
    assert not tiny[0]._forward_pre_hooks and not tiny[0]._forward_hooks


def test_an_error_inside_the_block_is_raised_unchanged(tiny: Tiny) -> None:
    with pytest.raises(KeyError), kvbench.compressed(tiny[0], "snapkv", 70):
        raise KeyError


def test_a_cache_that_the_model_ignores_is_an_error(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes its cache by another keyword would decode without it, and nothing would be compressed."""
    model = tiny[0]
    real = model.forward

    def forward(*args: Any, cache: Any = None, past_key_values: Any = None, **kwargs: Any) -> Any:
        return real(*args, **kwargs)

    monkeypatch.setattr(model, "forward", forward)
    with kvbench.compressed(model, "snapkv", 70), pytest.raises(ValueError, match="did not use the cache it was given"):
        model(torch.tensor([prompt(80)]))


@pytest.mark.parametrize("settings", [{"prompt_lookup_num_tokens": 3}, {"num_beams": 2}])
def test_decoding_that_takes_tokens_back_is_refused(tiny: Tiny, settings: dict[str, Any]) -> None:
    tokens = torch.tensor([prompt(40) * 3])
    with (
        kvbench.compressed(tiny[0], "snapkv", 70),
        pytest.raises(ValueError, match="take tokens back|can be cropped|one unpadded sequence") as refused,
    ):
        tiny[0].generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW, **settings)
    assert "\n" not in str(refused.value)


def test_one_cache_for_two_generate_calls_is_refused(tiny: Tiny) -> None:
    """transformers' pattern for conversations: the second call has all ids, and the cache those of the first one."""
    model, cache = tiny[0], DynamicCache()
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}

    def answer(ids: list[int], cache: DynamicCache | None = None) -> list[int]:
        tokens = torch.tensor([ids])
        out = model.generate(tokens, attention_mask=torch.ones_like(tokens), past_key_values=cache, **settings)
        answered: list[int] = out[0].tolist()
        return answered

    with kvbench.compressed(model, "snapkv", 40):
        chat = [*answer(prompt(60), cache), *prompt(20, seed=1)]
        with pytest.raises(ValueError, match="begins at position 0 and its cache holds 63 tokens; .* without past_key"):
            answer(chat, cache)
        second = answer(chat)
    assert second[len(chat) :] == generate(tiny, [chat], [("snapkv", 40)], max_new_tokens=4)[0][0].token_ids


@pytest.mark.parametrize("chunk", [1, 16, 50, 100])
def test_a_prompt_in_pieces_is_refused(tiny: Tiny, chunk: int) -> None:
    """The first piece alone would be compressed, and the budget be that of a piece."""
    tokens = torch.tensor([prompt(300)])
    settings = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 4, "do_sample": False}
    refused = r"compresses a prompt after the first call.*without prefill_chunk_size"
    with kvbench.compressed(tiny[0], "snapkv", 70) as handle:
        with pytest.raises(ValueError, match=refused):
            tiny[0].generate(tokens, prefill_chunk_size=chunk, **settings)
        cache = DynamicCache()
        with pytest.raises(ValueError, match=refused):
            for piece in tokens.split(chunk, 1):
                tiny[0](piece, past_key_values=cache)
        tiny[0].generate(tokens, **settings, eos_token_id=None)
        assert handle.cache is not None and handle.cache.kept[0] == [70 + 3] * 2


def test_pieces_that_the_model_asks_for_are_refused_whatever_their_length(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last piece of 300 tokens in pieces of 299 looks like the first token of an answer."""
    monkeypatch.setattr(tiny[0].generation_config, "prefill_chunk_size", 299)
    with (
        kvbench.compressed(tiny[0], "snapkv", 70),
        pytest.raises(ValueError, match=r"generation_config.prefill_chunk_size=299 .*set it to None"),
    ):
        tiny[0].generate(torch.tensor([prompt(300)]), max_new_tokens=4, do_sample=False)


def test_guidance_without_a_prompt_to_avoid_is_refused_by_its_name(tiny: Tiny) -> None:
    """transformers takes the last token of the prompt as the other prompt, which leaves nothing to compress."""
    tokens = torch.tensor([prompt(300)])
    settings = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 4, "do_sample": False, "guidance_scale": 2}
    with kvbench.compressed(tiny[0], "snapkv", 70):
        with pytest.raises(ValueError, match=r"single token; guidance_scale without negative_prompt_ids .*give them"):
            tiny[0].generate(tokens, **settings)
        tiny[0].generate(tokens, **settings, negative_prompt_ids=tokens[:, :90])


def test_several_tokens_after_an_answer_are_a_turn(tiny: Tiny) -> None:
    cache, ids = DynamicCache(), torch.tensor([prompt(100)])
    with kvbench.compressed(tiny[0], "snapkv", 70) as handle:
        for part in (ids, ids[:, :1], ids[:, :20]):
            tiny[0](part, past_key_values=cache)
        assert handle.cache is not None and handle.cache.kept[0] == [70 + 21] * 2


def test_a_cache_works_in_its_block_alone(tiny: Tiny) -> None:
    """Elsewhere the model would attend to its newest tokens alone."""
    model, ids = tiny[0], torch.tensor([prompt(100)])
    with kvbench.compressed(model, "snapkv", 70):
        cache = model(ids).past_key_values
        with pytest.raises(ValueError, match="cannot be copied"):
            copy.deepcopy(cache)
        model(ids[:, :1], past_key_values=cache)
    for part in (ids[:, :1], ids[:, :5]):
        with pytest.raises(ValueError, match="inside the block alone"):
            model(part, past_key_values=cache)
    with kvbench.compressed(model, "snapkv", 70):
        model(ids)
        model(ids[:, :1], past_key_values=cache)  # a second block of the same model is as good as the first


class Wrapper(nn.Module):
    """A wrapper as that of PEFT: its forward call skips the hooks of the model in it."""

    def __init__(self, model: Any, is_prompt_learning: bool = False) -> None:
        super().__init__()
        self.base, self.active_peft_config = model, SimpleNamespace(is_prompt_learning=is_prompt_learning)

    def get_base_model(self) -> Any:
        return self.base

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base.forward(*args, **kwargs)


def test_the_model_in_a_wrapper_is_found_or_asked_for(tiny: Tiny) -> None:
    model, tokenizer = tiny
    ids, asked, around = prompt(80), [("snapkv", 40)], Wrapper(model)
    assert generate((around, tokenizer), [ids], asked)[0][0].token_ids == generate(tiny, [ids], asked)[0][0].token_ids
    with pytest.raises(
        ValueError, match=r"^kvbench\.compressed: Wrapper wraps the model.*give model.get_base_model\(\)"
    ):
        kvbench.compressed(around, "snapkv", 40)
    with kvbench.compressed(model, "snapkv", 40):
        own_answer(around.get_base_model(), ids)
        with pytest.raises(
            ValueError, match="in calls of the model that kvbench.compressed was given: not of a wrapper"
        ):
            around(torch.tensor([ids]))


def test_wrappers_that_change_the_model_are_refused(tiny: Tiny) -> None:
    model, tokenizer = tiny
    for wrapper, message in (
        (torch.compile(model, backend="eager"), "torch.compile wraps it"),
        (Wrapper(torch.compile(model, backend="eager")), "torch.compile wraps it"),
        (Wrapper(model, is_prompt_learning=True), "Wrapper puts learned tokens before the prompt"),
        (nn.Sequential(model), "Sequential is not a model of transformers"),
    ):
        for call in (
            partial(generate, (wrapper, tokenizer), [prompt(80)], [("snapkv", 40)]),
            partial(kvbench.compressed, wrapper, "snapkv", 40),
        ):
            with pytest.raises(ValueError, match=f"^model: {message}") as refused:
                call()
            assert "\n" not in str(refused.value)


def test_every_generate_call_is_a_new_prompt(tiny: Tiny) -> None:
    ids = [prompt(290, seed=seed) for seed in (1, 2)]
    answers = []
    with kvbench.compressed(tiny[0], "snapkv", 70) as handle:
        for tokens in ids:
            answers.append(own_answer(tiny[0], tokens))
            assert handle.cache is not None and handle.cache.kept[0] == [70 + NEW - 1] * 2
    assert answers == [out.token_ids for (out,) in generate(tiny, ids, [("snapkv", 70)])]


def test_layers_left_out_by_self_speculation_are_refused_and_put_back(tiny: Tiny) -> None:
    model, ids = tiny[0], torch.tensor([prompt(100)])
    layers = model.config.num_hidden_layers
    with (
        kvbench.compressed(model, "snapkv", 70),
        pytest.raises(ValueError, match="generate without assistant_early_exit$"),
    ):
        model.generate(ids, attention_mask=torch.ones_like(ids), assistant_early_exit=1, max_new_tokens=4)
    assert model.config.num_hidden_layers == layers


def test_arguments_by_place_mean_the_same(tiny: Tiny) -> None:
    model, ids, cache = tiny[0], torch.tensor([prompt(100)]), DynamicCache()
    with kvbench.compressed(model, "snapkv", 70) as handle:
        named = model(ids).logits
        assert torch.equal(model(ids, torch.ones_like(ids), None, cache).logits, named)
        model(ids[:, :1], None, None, cache)
        assert handle.cache is not None and handle.cache.kept[0] == [71] * 2
        with pytest.raises(ValueError, match="one unpadded sequence"):
            model(ids, torch.tensor([[0] + [1] * 99]))


def test_each_of_the_callers_caches_goes_on_with_its_own_prompt(tiny: Tiny) -> None:
    """The first one is empty, as it never got a token: a turn with it had been taken for a new prompt."""
    model, (a, b) = tiny[0], (torch.tensor([prompt(100, seed=seed)]) for seed in (1, 2))
    step, turn = b[:, :1], b[:, 1:6]

    def answers(between: bool) -> torch.Tensor:
        first, second = DynamicCache(), DynamicCache()
        with kvbench.compressed(model, "snapkv", 40):
            model(a, past_key_values=first)
            model(step, past_key_values=first)
            if between:
                model(b, past_key_values=second)
            logits: torch.Tensor = model(turn, past_key_values=first).logits
            return logits

    assert torch.equal(answers(True), answers(False))


def test_positions_and_caches_that_the_engine_does_not_follow_are_refused(tiny: Tiny) -> None:
    model, ids = tiny[0], torch.tensor([prompt(100)])
    packed = torch.arange(50).repeat(2)[None]
    with kvbench.compressed(model, "snapkv", 70):
        for given, message in (
            ({"position_ids": packed}, "one sequence at a time, and position_ids do not count up by one"),
            ({"position_ids": packed.sort().values}, "do not count up by one"),
            ({"position_ids": torch.arange(5, 105)[None]}, "begins at position 5 and its cache holds 0 tokens"),
            ({"past_key_values": ((ids, ids),)}, "past_key_values is a tuple; give a cache of transformers"),
        ):
            with pytest.raises(ValueError, match=message) as refused:
                model(ids, **given)
            assert "\n" not in str(refused.value)
        model(ids, position_ids=torch.arange(100)[None])
