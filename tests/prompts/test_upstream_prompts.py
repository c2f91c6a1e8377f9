"""The published ways from text to ids, against the steps of the specification written down once more, naively."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.benchmarks.base import ModelFacts, Rendering, Sample
from kvbench.benchmarks.longbench_protocols import PRESETS
from kvbench.models import EndIds
from kvbench.prompts import show, upstream
from kvbench.prompts.prompt import Cut
from tests.helpers.tokenizers_for_tests import ALL, CHATML, LLAMA2, every_tokenizer, gpt_style, sentencepiece_style

MIDDLE = Rendering(style="upstream", max_length=40, truncation="middle")
ENDS = EndIds(frozenset({7, 8, 9}), frozenset({7, 8}), frozenset({9}))


def sample(**changes) -> Sample:
    base = Sample("s", "Read this. The cat sat on the mat. ", "\nWhere did it sit?", "", ("mat",), 8)
    return replace(base, **changes)


def render(tokenizer, sample, rendering, span="prompt", **more):
    return upstream.render(tokenizer, sample, rendering, span=span, ends=ENDS, **more)


def official(tokenizer, text: str, limit: int, wrap) -> list[int]:
    """Follow section 1.4 of LongBench's protocol: encode, cut the middle out, join as text, wrap, encode again."""
    ids = tokenizer(text).input_ids
    if len(ids) > limit:
        half = int(limit / 2)
        text = tokenizer.decode(ids[:half], skip_special_tokens=True) + tokenizer.decode(
            ids[-half:], skip_special_tokens=True
        )
    return tokenizer(wrap(text)).input_ids


@every_tokenizer
@settings(max_examples=25, deadline=None)
@given(
    context=st.text(alphabet="abc XY.é\n中</s>", max_size=120),
    question=st.text(alphabet="abc ?", min_size=1, max_size=30),
    limit=st.integers(2, 90),
)
def test_bare_prompts_are_the_official_ones(make, context, question, limit):
    tokenizer = make()
    prompt = render(
        tokenizer, sample(context=context, question=question, chat=False), replace(MIDDLE, max_length=limit)
    )
    assert list(prompt.ids) == official(tokenizer, context + question, limit, lambda text: text)
    assert 0 <= prompt.context_len <= len(prompt.ids)


@pytest.mark.parametrize("limit", [6, 20, 21, 1000])
def test_a_literal_wrapper_comes_after_truncation(limit):
    tokenizer = sentencepiece_style("first")
    rendering = replace(MIDDLE, wrapper="[INST]{prompt}[/INST]", max_length=limit)
    prompt = render(tokenizer, sample(), rendering)
    whole = sample().context + sample().question
    assert list(prompt.ids) == official(tokenizer, whole, limit, lambda text: f"[INST]{text}[/INST]")


def test_wrapped_first_loses_its_middle_as_one_text():
    tokenizer = sentencepiece_style("first")
    rendering = replace(MIDDLE, wrapper="[INST] {prompt} [/INST]", wrap_first=True, max_length=20)
    prompt = render(tokenizer, sample(), rendering)
    whole = f"[INST] {sample().context}{sample().question} [/INST]"
    assert list(prompt.ids) == official(tokenizer, whole, 20, lambda text: text)


def test_truncation_on_ids_does_not_encode_again():
    tokenizer = sentencepiece_style("always")
    rendering = replace(MIDDLE, wrapper="none", truncation="middle_ids", max_length=11)
    ids = tokenizer(sample().context + sample().question).input_ids
    assert list(render(tokenizer, sample(), rendering).ids) == ids[:5] + ids[-5:]


def test_bos_once_or_added_to_that_of_the_template():
    tokenizer = sentencepiece_style("first", LLAMA2)
    once = render(tokenizer, sample(), replace(MIDDLE, wrapper="native", max_length=1000))
    twice = render(tokenizer, sample(), replace(MIDDLE, wrapper="native", max_length=1000, bos="added"))
    bos = tokenizer.bos_token_id
    assert once.ids.count(bos) == 1 and twice.ids[:2] == (bos, bos) and twice.ids[2:] == once.ids[1:]


def test_the_native_template_may_trim_and_the_chat_wrapper_does_not():
    tokenizer = gpt_style(CHATML)
    text = sample(question="\nThe answer is: ")
    native = render(tokenizer, text, replace(MIDDLE, wrapper="native", max_length=1000))
    chat = render(tokenizer, text, replace(MIDDLE, wrapper="chat", max_length=1000))
    assert "is:<|im_end|>" in native.text and "is: <|im_end|>" in chat.text
    long = replace(MIDDLE, max_length=1000)
    assert render(tokenizer, replace(text, chat=False), long).text == text.context + text.question
    assert render(tokenizer, text, long, chat_template="never").text == text.context + text.question


def test_the_context_ends_where_the_question_begins():
    tokenizer = gpt_style(CHATML)
    prompt = render(tokenizer, sample(), replace(MIDDLE, wrapper="chat", max_length=1000))
    assert tokenizer.decode(prompt.ids[: prompt.context_len]).endswith("mat. ")
    apart = render(tokenizer, sample(), replace(MIDDLE, wrapper="chat", max_length=1000), span="context")
    assert apart.text == prompt.text and tokenizer.decode(apart.ids[: apart.context_len]).endswith("mat. ")


@pytest.mark.parametrize("bos", ["once", "added", "missing"])
def test_the_border_is_right_whether_a_bos_is_added_or_not(bos):
    tokenizer = sentencepiece_style("first", LLAMA2)
    prompt = render(tokenizer, sample(), replace(MIDDLE, wrapper="chat", max_length=1000, bos=bos))
    rest = tokenizer.decode(prompt.ids[prompt.context_len :])
    assert rest.lstrip().startswith("Where did it sit?")
    assert prompt.ids.count(tokenizer.bos_token_id) == (2 if bos == "added" else 1)


def test_a_missing_bos_is_added():
    tokenizer = sentencepiece_style("first")
    rendering = Rendering(style="upstream", wrapper="none", bos="missing")
    plain = render(tokenizer, sample(), rendering)
    written = render(tokenizer, sample(context="<s>" + sample().context), rendering)
    assert plain.ids[0] == written.ids[0] == tokenizer.bos_token_id and written.ids[1] != tokenizer.bos_token_id


@pytest.mark.parametrize("limit", [8, 20, 60])
def test_the_border_of_cut_ids(limit):
    tokenizer = gpt_style()  # a token for every letter
    rendering = replace(MIDDLE, wrapper="none", truncation="middle_ids", max_length=limit)
    prompt = render(tokenizer, sample(), rendering)
    left = min(len(sample().question), limit // 2) if limit < len(sample().context) else len(sample().question)
    assert len(prompt.ids) - prompt.context_len == left


def test_context_and_question_apart():
    tokenizer = gpt_style(CHATML)
    rendering = PRESETS["kvpress"].rendering
    prompt = render(tokenizer, sample(answer_prefix="Answer:"), rendering, span="context")
    before, after = "<|im_start|>user\nRead this. The cat sat on the mat. ", "<|im_end|>\n<|im_start|>assistant\n"
    head = tokenizer.encode(before, add_special_tokens=False)
    tail = tokenizer.encode("\nWhere did it sit?" + after + "Answer:", add_special_tokens=False)
    assert list(prompt.ids) == head + tail and prompt.context_len == len(head)


def test_without_a_template_the_context_gets_a_bos_and_the_question_a_newline():
    tokenizer = sentencepiece_style("first")
    prompt = render(tokenizer, sample(answer_prefix="Answer:"), PRESETS["kvpress"].rendering, span="context")
    head = tokenizer.encode("<s>" + sample().context, add_special_tokens=False)
    tail = tokenizer.encode(sample().question + "\nAnswer:", add_special_tokens=False)
    assert list(prompt.ids) == head + tail
    plain = render(tokenizer, sample(answer_prefix="Answer:"), PRESETS["ffy0-agnostic"].rendering, span="context")
    assert list(plain.ids) == head + tokenizer.encode(sample().question + "Answer:", add_special_tokens=False)
    bare = render(tokenizer, sample(chat=False), PRESETS["ffy0-agnostic"].rendering, span="context")
    head = tokenizer.encode(sample().context, add_special_tokens=False)
    assert list(bare.ids) == head + tokenizer.encode(sample().question, add_special_tokens=False)


def test_only_the_end_of_the_context_is_cut():
    tokenizer = gpt_style()
    rendering = replace(PRESETS["kvpress"].rendering, max_length=10)
    whole = render(tokenizer, sample(), PRESETS["kvpress"].rendering, span="context")
    prompt = render(tokenizer, sample(), rendering, span="context")
    assert prompt.context_len == 10 and prompt.ids == whole.ids[:10] + whole.ids[whole.context_len :]
    limit = len(whole.ids)  # the model's own limit leaves room for the answer, too
    prompt = render(tokenizer, sample(), PRESETS["kvpress"].rendering, span="context", max_length=limit)
    assert len(prompt.ids) + sample().max_new_tokens == limit


@pytest.mark.parametrize("truncation", ["middle", "middle_ids"])
def test_a_prompt_says_how_much_of_its_middle_was_cut(truncation: str) -> None:
    tokenizer = gpt_style()
    rendering = replace(MIDDLE, wrapper="none", truncation=truncation, max_length=None)
    whole = render(tokenizer, sample(), rendering)
    cut = render(tokenizer, sample(), replace(rendering, max_length=7))
    assert whole.cut is None and "cut:" not in show(whole, tokenizer)
    assert cut.cut == Cut(len(whole.ids) - 6, len(whole.ids), "in the middle of the prompt")  # two halves of 3
    last = show(cut, tokenizer).splitlines()[-1]
    assert last == f"cut: {len(whole.ids) - 6} of {len(whole.ids)} tokens left out in the middle of the prompt"


def test_a_prompt_says_how_much_of_its_context_was_cut() -> None:
    tokenizer, rendering = gpt_style(), PRESETS["kvpress"].rendering
    whole = render(tokenizer, sample(), rendering, span="context")
    cut = render(tokenizer, sample(), replace(rendering, max_length=10), span="context")
    assert whole.cut is None
    assert cut.cut == Cut(whole.context_len - 10, whole.context_len, "at the end of the context")


@pytest.mark.parametrize(("stops", "ids"), [("all", {7, 8, 9}), ("model", {7, 8}), ("tokenizer", {9})])
def test_stops(stops, ids):
    tokenizer = sentencepiece_style("always")
    rendering = replace(MIDDLE, stops=stops)
    assert render(tokenizer, sample(), rendering).stop_ids == ids
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    assert render(tokenizer, sample(stop=("\n",)), rendering).stop_ids == ids | {newline}


def test_all_stops_hold_the_end_of_the_turn():
    tokenizer = gpt_style(CHATML)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in render(tokenizer, sample(), MIDDLE).stop_ids
    assert end not in render(tokenizer, sample(), replace(MIDDLE, stops="model")).stop_ids


def test_too_long_is_refused():
    tokenizer = ALL["gpt"]()
    with pytest.raises(ValueError, match="benchmark.max_length=5"):
        render(tokenizer, sample(), replace(MIDDLE, truncation="refuse", max_length=5))
    with pytest.raises(ValueError, match="model.max_length=5"):
        render(tokenizer, sample(), MIDDLE, max_length=5)


# The table of published protocols, read from the specification: model, preset → length, wrapper of qasper, BOS, stops.
LLAMA3, MISTRAL, LLAMA2_CHAT = (
    ModelFacts("llama31_8b", "meta-llama/Llama-3.1-8B-Instruct", 131072),
    ModelFacts("mistral_7b_v02", "mistralai/Mistral-7B-Instruct-v0.2", 32768),
    ModelFacts("local", "models/llama2-7b-chat", 4096),
)
LLAMA2_HUB = ModelFacts("local", "meta-llama/Llama-2-7b-chat-hf", 4096)


@pytest.mark.parametrize(
    ("model", "preset", "length", "wrapper", "bos", "stops"),
    [
        (LLAMA2_CHAT, "longbench-original", 3500, "[INST]{prompt}[/INST]", "once", "model"),
        (LLAMA3, "adakv-2024", "auto", "native", "added", "tokenizer"),
        (MISTRAL, "adakv-2024", 31500, "none", "added", "tokenizer"),
        (LLAMA3, "pyramidkv-2024", 7950, "none", "once", "tokenizer"),
        (MISTRAL, "pyramidkv-2024", 31500, "none", "once", "tokenizer"),
        (LLAMA2_CHAT, "pyramidkv-2024", 3950, "[INST] {prompt} [/INST]", "once", "tokenizer"),
        (LLAMA2_HUB, "longbench-original", 3500, "[INST]{prompt}[/INST]", "once", "model"),
        (LLAMA2_HUB, "pyramidkv-2024", 3950, "none", "once", "tokenizer"),  # its script looks for "llama2" alone
        (LLAMA2_HUB, "kvcf-2026", 3950, "none", "once", "all"),
        (LLAMA2_CHAT, "kvcf-2026", 3950, "[INST] {prompt} [/INST]", "once", "all"),
        (MISTRAL, "kvcf-2026", 31500, "none", "once", "all"),
        (LLAMA3, "windowkv", 7950, "none", "once", "model"),
        (LLAMA3, "kvpress", None, "native", "once", "model"),
    ],
)
def test_presets_by_model(model, preset, length, wrapper, bos, stops):
    rendering = PRESETS[preset].rendering_for(model, "qasper")
    assert (rendering.max_length, rendering.wrapper, rendering.bos, rendering.stops) == (length, wrapper, bos, stops)


@pytest.mark.parametrize(
    ("path", "preset", "wrapper"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", "adakv-2024", "native"),
        ("meta-llama/Meta-Llama-3-8B", "adakv-2024", "none"),
        ("models/llama3-8b-instruct", "adakv-2024", "none"),  # its script looks for "llama-3"
        ("/data/llama-2-group/my_qwen", "longbench-original", "chat"),
        ("/data/llama-3-instruct/my_qwen", "adakv-2024", "none"),
        ("/data/llama2/my_qwen", "pyramidkv-2024", "none"),
        ("/data/other/Llama-2-7b-chat-hf/", "longbench-original", "[INST]{prompt}[/INST]"),
    ],
)
def test_rules_look_at_the_models_name_and_not_at_its_folder(path: str, preset: str, wrapper: str) -> None:
    assert PRESETS[preset].rendering_for(ModelFacts("local", path), "qasper").wrapper == wrapper


def test_samsum_and_the_first_token():
    assert PRESETS["longbench-original"].rendering_for(LLAMA3, "samsum").stops == "tokenizer"
    least = {name: [preset.min_new_tokens(d) for d in ("samsum", "qasper")] for name, preset in PRESETS.items()}
    assert least == {
        "longbench-original": [1, 0],
        "adakv-2024": [1, 0],
        "pyramidkv-2024": [1, 1],
        "kvcf-2026": [1, 1],
        "windowkv": [0, 0],
        "kvpress": [0, 0],
        "ffy0-agnostic": [0, 0],
    }
    assert PRESETS["ffy0-agnostic"].rendering_for(LLAMA3, "samsum").stops == "tokenizer"
    wrapped = [PRESETS[name].chat(LLAMA3, "trec") for name in ("longbench-original", "pyramidkv-2024", "kvpress")]
    assert wrapped == [False, True, True]
    old = PRESETS["kvcf-2026"]
    assert old.chat(LLAMA2_CHAT, "trec") and old.rendering_for(LLAMA2_CHAT, "qasper").wrap_first
    assert not old.chat(LLAMA3, "trec") and not old.rendering_for(LLAMA3, "qasper").wrap_first


@pytest.mark.parametrize("wrapper", ["none", "chat", "native", "[INST]{prompt}[/INST]"])
@pytest.mark.parametrize("span", ["prompt", "context"])
def test_the_template_ends_where_the_context_begins(wrapper: str, span: str) -> None:
    tokenizer = gpt_style(CHATML)
    rendering = Rendering(style="upstream", wrapper=wrapper, truncation="middle", max_length=500)
    prompt = render(tokenizer, sample(), rendering, span=span)
    rest = tokenizer.decode(prompt.ids[prompt.template_len :])
    assert rest.startswith("Read this.")
    assert prompt.template_len == {"none": 0, "[INST]{prompt}[/INST]": 6}.get(wrapper, len("user\n") + 1)
