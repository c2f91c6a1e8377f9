"""The view of a model that methods get: kinds of tokens, and what the chat template writes after the words."""

from __future__ import annotations

import copy

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

from kvbench.engine.model_view import view_of
from tests.helpers.tiny_engine import tiny_model
from tests.helpers.tokenizers_for_tests import gpt_style, sentencepiece_style

ASKED = {"role": "user", "content": "Hello"}
CHATS = [
    None,  # the tiny model's own
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"  # the header ends the turn
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
]


def test_kinds_of_tokens() -> None:
    model, tokenizer = tiny_model()
    view = view_of(model, tokenizer)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    kinds = {kind: view.ids(kind).tolist() for kind in ("special", "punctuation", "newline", "digit")}
    assert set(kinds["special"]) == special
    assert {tokenizer.decode([i]) for i in kinds["digit"]} >= set("0123456789")
    assert {tokenizer.decode([i]).strip() for i in kinds["punctuation"]} >= {".", ",", "!", "?"}
    assert "\n" in {tokenizer.decode([i]) for i in kinds["newline"]}
    assert len(set().union(*kinds.values())) == sum(map(len, kinds.values())), "no token is of two kinds"
    assert all(ids == sorted(ids) for ids in kinds.values())
    assert tokenizer.decode(view.encode("A word")) == "A word"
    with pytest.raises(ValueError, match="Did you mean"):
        view.ids("newlines")


@pytest.mark.parametrize("style", ["bytes", "first", "always"])
def test_kinds_do_not_depend_on_how_a_tokenizer_writes_spaces(style: str) -> None:
    """Byte-level BPE writes Ġ, sentencepiece ▁ or a byte; many specials appear in chat templates alone."""
    tokenizer = gpt_style() if style == "bytes" else sentencepiece_style(style)
    view = view_of(tiny_model()[0], tokenizer)
    texts = {kind: [tokenizer.decode([i]).strip() for i in view.ids(kind)] for kind in ("punctuation", "digit")}
    marks = set(tokenizer.get_vocab()) & {".", ",", "?", "/", "[", "Ġ.", "▁,"}
    assert marks and {tokenizer.get_vocab()[mark] for mark in marks} <= set(view.ids("punctuation").tolist())
    assert all(text and not any(letter.isalnum() for letter in text) for text in texts["punctuation"])
    assert set(texts["digit"]) == set("0123456789")
    added = tokenizer.added_tokens_decoder
    assert set(view.ids("special").tolist()) == {i for i, token in added.items() if token.special}
    assert len(view.ids("special")) > len(tokenizer.special_tokens_map) or style in ("first", "always")


def test_punctuation_with_a_space_before_it_and_of_other_scripts() -> None:
    words = {
        "Ġ,": 0,
        "Ġ.": 1,
        ").": 2,
        "Ġa": 3,
        "Ġ": 4,
        "Ċ": 5,
        "Ġ12": 6,
        ",a": 7,
        "ï¼Į": 8,
        "âĢľ": 9,
        "â": 10,
        ".Ċ": 11,
    }
    backend = Tokenizer(token_models.BPE(vocab=words, merges=[]))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    view = view_of(tiny_model()[0], tokenizer)
    kinds = {kind: view.ids(kind).tolist() for kind in ("special", "punctuation", "newline", "digit")}
    assert kinds == {"special": [], "punctuation": [0, 1, 2, 8, 9, 11], "newline": [5], "digit": [6]}


@pytest.mark.parametrize("template", CHATS)
def test_the_answer_prefix_is_all_that_the_chat_template_writes_after_the_words(template: str | None) -> None:
    """It ends the user's turn, too: what follows the words in a conversation is what follows them here."""
    model, tokenizer = tiny_model()
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template if template is None else template
    asked, answered = (
        str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=wanted))
        for turns, wanted in (([ASKED], True), ([ASKED, {"role": "assistant", "content": "Bye"}], False))
    )
    after = asked.partition("Hello")[2]
    assert after and answered.partition("Hello")[2].startswith(after), "the template of this test is odd"
    assert view_of(model, tokenizer).answer_prefix() == tokenizer.encode(after, add_special_tokens=False)


def test_a_template_that_writes_no_words_has_no_answer_prefix() -> None:
    model, tokenizer = tiny_model()
    mute, without = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    mute.chat_template, without.chat_template = "<user></user><assistant>", None
    assert [view_of(model, other).answer_prefix() for other in (mute, without)] == [[], []]


def test_a_view_without_a_tokenizer_says_so() -> None:
    view = view_of(tiny_model()[0], None)
    for ask in (lambda: view.encode("a"), view.answer_prefix, lambda: view.ids("digit")):
        with pytest.raises(ValueError, match="tokenizer="):
            ask()
