"""Spaces before punctuation as transformers 4 removed them, and the BOS that transformers 5 leaves out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from kvbench.benchmarks.base import Rendering, Sample
from kvbench.benchmarks.longbench_protocols import PRESETS
from kvbench.encoding import cleaned_up, decoder
from kvbench.models import EndIds
from kvbench.prompts import answer_text, native_bos, render, upstream
from tests.helpers.tokenizers_for_tests import LLAMA2, gpt_style, sentencepiece_style

SPACED = "What the hell ... ? a != b , it 's I 'm you 've we 're do n't ' x ' end !"
CLEAN = "What the hell...? a!= b, it's I'm you've we're don't'x'end!"
MIDDLE = Rendering(style="upstream", wrapper="none", truncation="middle", clean_up_spaces=True)


def sample(context: str = SPACED * 8, **changes: Any) -> Sample:
    return replace(Sample("s", context, " Why ? Say it .", "", ("x",), 8, chat=False), **changes)


def reloaded(tokenizer: Any, folder: Path, **settings: Any) -> Any:
    """Save a tokenizer, change its configuration file, and load it as a user does."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return AutoTokenizer.from_pretrained(folder)


def test_the_list_of_transformers_4() -> None:
    assert cleaned_up(SPACED) == CLEAN
    assert cleaned_up("a . b\n?  !") == "a. b\n? !"  # one space, never a line break


@pytest.mark.parametrize(
    ("configured", "rule", "is_clean"),
    [
        (True, True, True),
        (True, False, False),
        (False, True, False),
        (None, True, False),
    ],
)
def test_the_tokenizers_configuration_decides(
    tmp_path: Path, configured: bool | None, rule: bool, is_clean: bool
) -> None:
    tokenizer = reloaded(gpt_style(), tmp_path, clean_up_tokenization_spaces=configured)
    ids = tokenizer.encode(SPACED, add_special_tokens=False)
    assert decoder(tokenizer, rule)(ids) == (CLEAN if is_clean else SPACED)


def test_a_prompt_cut_in_the_middle_is_cleaned_up_and_a_whole_one_is_not(tmp_path: Path) -> None:
    tokenizer = reloaded(gpt_style(), tmp_path, clean_up_tokenization_spaces=True)
    cut = upstream.render(tokenizer, sample(), replace(MIDDLE, max_length=200), span="prompt", ends=EndIds())
    ids = tokenizer(sample().context + sample().question).input_ids
    halves = [tokenizer.decode(part) for part in (ids[:100], ids[-100:])]
    assert cut.text == "".join(map(cleaned_up, halves)) and list(cut.ids) == tokenizer(cut.text).input_ids
    assert tokenizer.decode(cut.ids[cut.context_len :]).strip() == "Why? Say it."  # the border is still found
    whole = upstream.render(tokenizer, sample(), replace(MIDDLE, max_length=5000), span="prompt", ends=EndIds())
    assert whole.text == sample().context + sample().question
    assert answer_text(cut, "a != b .") == "a!= b." and answer_text(replace(cut, clean_up_spaces=False), "b .") == "b ."


def test_every_preset_of_transformers_4_cleans_up() -> None:
    assert all(preset.rendering.clean_up_spaces for preset in PRESETS.values())
    assert Rendering().clean_up_spaces is False


# ---- BOS -------------------------------------------------------------------------------------------


def deepseek_style(folder: Path, template: str | None = None) -> Any:
    """Load a tokenizer whose configuration asks for a BOS that its file does not add."""
    tokenizer = gpt_style(template)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = {"add_bos_token": True, "tokenizer_class": "LlamaTokenizerFast"}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "template", [None, "{{ bos_token }}U{{ messages[0]['content'] }}A", "U{{ messages[0]['content'] }}A"]
)
def test_exactly_one_bos_where_the_configuration_asks_for_it(tmp_path: Path, template: str | None) -> None:
    tokenizer = deepseek_style(tmp_path, template)
    bos = tokenizer.bos_token_id
    assert native_bos(tokenizer) == bos
    for chat in (True, False):
        strict = render(tokenizer, sample("a b", chat=chat))
        assert strict.ids[0] == bos and strict.ids.count(bos) == 1
        rendering = Rendering(style="upstream", max_length=100, truncation="middle")
        published = upstream.render(tokenizer, sample("a b", chat=chat), rendering, span="prompt", ends=EndIds())
        assert published.ids[0] == bos and published.ids.count(bos) == 1


def test_no_bos_where_nothing_asks_for_it() -> None:
    assert native_bos(gpt_style()) is None
    assert native_bos(sentencepiece_style("first", LLAMA2)) == 1


def test_a_tokenizer_without_a_line_break_is_one_line(tmp_path: Path) -> None:
    tokenizer = sentencepiece_style("first")
    tokenizer.encode = lambda text, **_: []
    with pytest.raises(ValueError, match=r"this tokenizer has no token for '\\n', which ends the answers") as error:
        upstream.render(tokenizer, sample(stop=("\n",)), replace(MIDDLE, max_length=900), span="prompt", ends=EndIds())
    assert "\n" not in str(error.value)
