"""kvbench's own way from text to token ids: text stays text, and control tokens come from templates only.

A prompt is: [BOS] chat prefix, context, question, chat suffix, answer prefix. The template is rendered around a
placeholder, so the text before and after the user's words is known and the words themselves stay verbatim: a template
cannot trim them. Ids are never turned into text and tokenised again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.encoding import MARK, Encoder, around_user, encoder, has_template
from kvbench.encoding.template import after_assistant
from kvbench.prompts.prompt import Prompt

if TYPE_CHECKING:
    from kvbench.benchmarks.base import Sample


def render(
    tokenizer: Any,
    sample: Sample,
    *,
    question: str = "aware",
    chat_template: str = "auto",
    chat_kwargs: Mapping[str, Any] | None = None,
    eos_ids: frozenset[int] = frozenset(),
    max_length: int | None = None,
) -> Prompt:
    """Turn a sample into token ids.

    question: "aware" encodes the whole text at once; "agnostic" encodes the part up to the end of the context by
    itself, so that it does not depend on the question. chat_template: "auto" uses the tokenizer's template when it has
    one, "always" demands one, "never" ignores it; a sample with chat=False is never wrapped. eos_ids: the model's own
    ends. max_length: limit of prompt and answer in tokens. Raises ValueError for settings and samples that cannot be
    rendered.
    """
    if question not in ("aware", "agnostic"):
        raise ValueError(f"benchmark.question={question}: choose aware or agnostic")
    if MARK in sample.context + sample.question + sample.answer_prefix:
        raise ValueError(f"benchmark: sample {sample.id} holds the private character U+10FFFD; remove it there")
    enc, kwargs = encoder(tokenizer), dict(chat_kwargs or {})
    templated = has_template(tokenizer, chat_template)
    prefix, suffix = around_user(tokenizer, kwargs) if templated and sample.chat else ("", "")

    head = enc.template(prefix) + sample.context
    tail = sample.question + enc.template(suffix) + sample.answer_prefix
    if question == "aware":
        ids, ends = enc.encode(head + tail)
        # a token across the border belongs to the question
        context_len = next((i for i, end in enumerate(ends) if end > len(head)), len(ids))
    else:
        head_ids, _ = enc.encode(head)
        ids, context_len = head_ids + enc.encode(tail, inner=bool(head))[0], len(head_ids)

    template_len = tokens_before(ids, enc.encode(enc.template(prefix))[0])
    text, bos = enc.visible(head + tail), native_bos(tokenizer)
    if bos is not None and ids[:1] != [bos]:
        ids, context_len, text = [bos, *ids], context_len + 1, tokenizer.bos_token + text
        template_len += 1
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        raise ValueError("model.chat_template: the template writes two BOS tokens; fix it or set never")
    check_length(sample, len(ids), max_length)
    stops = {_stop_id(tokenizer, enc, stop) for stop in sample.stop}
    if templated:  # also for unwrapped samples: an instruct model may end its turn there as well
        stops |= end_of_turn(tokenizer, enc, kwargs)
    return Prompt(
        tuple(ids),
        context_len,
        eos_ids | stops,
        text,
        sample.min_new_tokens,
        task=sample.task,
        template_len=template_len,
    )


def tokens_before(ids: Sequence[int], *fronts: Sequence[int]) -> int:
    """Return how many of the first tokens are those of a front, encoded by itself; of several, of the longest."""
    pairs = [list(zip(ids, front, strict=False)) for front in fronts]
    return max(next((i for i, (own, other) in enumerate(of) if own != other), len(of)) for of in pairs)


def native_bos(tokenizer: Any) -> int | None:
    """Return the BOS id that the tokenizer puts before any text by itself, or that its configuration asks for."""
    return tokenizer.bos_token_id if _adds_bos(tokenizer) else missing_bos(tokenizer)


def missing_bos(tokenizer: Any) -> int | None:
    """Return the BOS id that the configuration asks for (`add_bos_token`) and the tokenizer leaves out, or None.

    transformers 4 rebuilt the tokenizer's post-processor from this setting. Version 5 does not for tokenizers such as
    DeepSeek-V3's, whose file has no post-processor that adds it.
    """
    if tokenizer.bos_token_id is None or _adds_bos(tokenizer):
        return None
    return tokenizer.bos_token_id if _configuration(tokenizer).get("add_bos_token") is True else None


def _configuration(tokenizer: Any) -> dict[str, Any]:
    """Return the content of tokenizer_config.json: transformers keeps only a part of it."""
    place = str(getattr(tokenizer, "name_or_path", ""))
    if place not in _configurations:
        file = Path(place) / "tokenizer_config.json"
        if place and not file.is_file():
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(place, "tokenizer_config.json") if re.fullmatch(_HUB_ID, place) else None
            file = Path(cached) if isinstance(cached, str) else file
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # no file: nothing is asked; a damaged one has stopped the tokenizer already
            content = {}
        _configurations[place] = content if isinstance(content, dict) else {}
    return _configurations[place]


_configurations: dict[str, dict[str, Any]] = {}
_HUB_ID = r"[\w.-]+(/[\w.-]+)?"


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def check_length(sample: Sample, tokens: int, max_length: int | None, *, answer: int | None = None) -> None:
    """Raise ValueError for a prompt that leaves the model no room for the answer.

    answer: tokens of the answer that have to fit, by default `sample.max_new_tokens`.
    """
    answer = sample.max_new_tokens if answer is None else answer
    if max_length is not None and tokens + max(0, answer - 1) > max_length:  # the last token is never read again
        also = f", and its answer may have {answer}" if answer else ""
        raise ValueError(
            f"model.max_length={max_length}: the prompt of sample {sample.id} has {tokens} tokens{also}; "
            "shorten the benchmark's lengths or raise model.max_length"
        )


def end_of_turn(tokenizer: Any, enc: Encoder, kwargs: dict[str, Any]) -> set[int]:
    """Return the special tokens that directly follow an assistant's words in the template, such as <|im_end|>."""
    return set(enc.leading_specials(after_assistant(tokenizer, kwargs)))


def _stop_id(tokenizer: Any, enc: Encoder, stop: str) -> int:
    """Return the one token of a task's stop string: a special token, or plain text as spelled after other text."""
    if stop in enc.specials:
        return enc.specials[stop]
    ids, _ = enc.encode(stop, inner=True)
    if len(ids) != 1:
        hint = "; a shell does not turn \\n into a line break" if "\\n" in stop else ""
        raise ValueError(f"benchmark.stop={stop!r}: must be one token for this tokenizer, not {len(ids)}{hint}")
    return ids[0]
