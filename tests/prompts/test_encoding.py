"""Encoding: special strings that users write stay text, and the tokenizer itself is not touched."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from kvbench.encoding import MARK, encoder
from kvbench.prompts import render
from tests.helpers.tokenizers_for_tests import CHATML, every_tokenizer, gpt_style, tiny_tokenizer
from tests.prompts.test_prompts import QUESTIONS, sample


def specials_in(tokenizer, ids) -> list[int]:
    return [i for i in ids if i in tokenizer.all_special_ids]


@every_tokenizer
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("place", ["context", "question", "answer_prefix"])
def test_special_strings_in_user_text_stay_text(make, question, place):
    tokenizer = make()
    text = f" a {''.join(tokenizer.all_special_tokens)} b "
    plain, hostile = sample(), sample(**{place: text})
    clean = render(tokenizer, plain, question=question)
    prompt = render(tokenizer, hostile, question=question)
    assert specials_in(tokenizer, prompt.ids) == specials_in(tokenizer, clean.ids)
    body = "".join(tokenizer.decode([i]) for i in prompt.ids if i not in tokenizer.all_special_ids)
    for token in tokenizer.all_special_tokens:
        assert token in body
    # the naive way does make control tokens of it, so the above is no accident
    assert specials_in(tokenizer, tokenizer(text, add_special_tokens=False).input_ids)


def test_special_strings_across_a_seam_stay_text():
    tokenizer = tiny_tokenizer()
    clean = render(tokenizer, sample())
    split = render(tokenizer, sample(context="x</", question="s>", answer_prefix="<s>"))
    assert specials_in(tokenizer, split.ids) == specials_in(tokenizer, clean.ids)


def test_added_tokens_that_are_not_special_are_text_as_ever():
    tokenizer = gpt_style(CHATML)
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert render(tokenizer, sample(context="<think>")).ids.count(think) == 1
    assert render(tokenizer, sample(), chat_kwargs={"think": False}).ids.count(think) == 1
    assert render(tokenizer, sample()).ids.count(think) == 0


def test_a_tokenizer_that_makes_control_tokens_of_words_is_told():
    backend = Tokenizer(WordLevel({"</s>": 0, "word": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.add_special_tokens(["</s>", "<unk>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    assert render(tokenizer, sample(context="word never ", question="word")).ids == (1, 2, 1)
    with pytest.raises(ValueError, match=r"control token 0 out of plain text"):
        render(tokenizer, sample(context="word </s> word"))


def test_private_names_in_data_are_told():
    with pytest.raises(ValueError, match=r"sample s0 .*private character"):
        render(tiny_tokenizer(), sample(context=f"{MARK}1{MARK}"))


def test_the_tokenizer_is_left_as_it_was():
    tokenizer = tiny_tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    render(tokenizer, sample())
    assert tokenizer.backend_tokenizer.to_str() == before
    assert encoder(tokenizer) is encoder(tokenizer)
