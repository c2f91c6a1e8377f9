"""The one place where text becomes token ids: chat template, BOS, the border of the context, stop ids.

    python -m kvbench.prompts model=tiny benchmark=needle show=3

A prompt is: [BOS] chat prefix, context, question, chat suffix, answer prefix. The template is rendered around
a placeholder, so what stands before and after the user's words is known and the words themselves stay
verbatim (a template that trims them does not get the chance). Ids are never turned into text and tokenised
again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.encoding import MARK, Encoder, encoder

if TYPE_CHECKING:
    from kvbench.benchmarks.base import Sample

VERSION = 1  # of the rendering rules; part of every protocol, raised when ids change
PLACEHOLDER = "kvbenchplaceholder"  # letters only: survives trimming and is in no template


@dataclass(frozen=True)
class Prompt:
    """Token ids ready for a model. `ids[:context_len]` is BOS, chat prefix and context."""

    ids: tuple[int, ...]
    context_len: int
    stop_ids: frozenset[int]
    text: str  # the same for the human eye, special tokens written out


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

    question: "aware" encodes the whole text at once; "agnostic" encodes the part up to the end of the context
    by itself, so that it does not depend on the question. chat_template: "auto" uses the tokenizer's template
    when it has one, "always" demands one, "never" ignores it; a sample with chat=False is never wrapped.
    eos_ids: the model's own ends. max_length: limit of the prompt in tokens. Raises ValueError for settings
    and samples that cannot be rendered.
    """
    if question not in ("aware", "agnostic"):
        raise ValueError(f"benchmark.question={question}: choose aware or agnostic")
    if MARK in sample.context + sample.question + sample.answer_prefix:
        raise ValueError(f"benchmark: sample {sample.id} holds the private character U+10FFFD; remove it there")
    enc, kwargs = encoder(tokenizer), dict(chat_kwargs or {})
    templated = _uses_template(tokenizer, chat_template)
    prefix, suffix = _around_user(tokenizer, kwargs) if templated and sample.chat else ("", "")

    head = enc.template(prefix) + sample.context
    tail = sample.question + enc.template(suffix) + sample.answer_prefix
    if question == "aware":
        ids, ends = enc.encode(head + tail)
        # a token across the border belongs to the question
        context_len = next((i for i, end in enumerate(ends) if end > len(head)), len(ids))
    else:
        head_ids, _ = enc.encode(head)
        ids, context_len = head_ids + enc.encode(tail, inner=bool(head))[0], len(head_ids)

    text, bos = enc.visible(head + tail), native_bos(tokenizer)
    if bos is not None and ids[:1] != [bos]:
        ids, context_len, text = [bos, *ids], context_len + 1, tokenizer.bos_token + text
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        raise ValueError("model.chat_template: the template writes two BOS tokens; fix it or set never")
    if max_length is not None and len(ids) > max_length:
        raise ValueError(
            f"model.max_length={max_length}: the prompt of sample {sample.id} has {len(ids)} tokens; "
            "shorten the benchmark's lengths or raise model.max_length"
        )
    stops = {_stop_id(tokenizer, enc, stop) for stop in sample.stop}
    if templated:  # also for unwrapped samples: an instruct model may end its turn there as well
        stops |= _end_of_turn(tokenizer, enc, kwargs)
    return Prompt(tuple(ids), context_len, eos_ids | stops, text)


def native_bos(tokenizer: Any) -> int | None:
    """The BOS id that the tokenizer puts before any text by itself, or None."""
    ids = tokenizer("a").input_ids
    return ids[0] if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else None


def show(prompt: Prompt, tokenizer: Any) -> str:
    """A prompt for the human eye, from its ids: specials in ⟦⟧, the context's end, the stop ids named."""
    special = set(encoder(tokenizer).specials.values())
    parts: list[str] = []
    plain: list[int] = []

    def flush() -> None:
        parts.append(tokenizer.decode(plain, clean_up_tokenization_spaces=False) if plain else "")
        plain.clear()

    for place, i in enumerate(prompt.ids):
        if place == prompt.context_len:
            flush()
            parts.append(f"\n⟦ context ends: {place} tokens ⟧\n")
        if i in special:
            flush()
            parts.append(f"⟦{tokenizer.convert_ids_to_tokens(i)}⟧")
        else:
            plain.append(i)
    flush()
    stops = [f"{i} {tokenizer.convert_ids_to_tokens(i)!r}" for i in sorted(prompt.stop_ids)]
    end = f"{len(prompt.ids)} tokens; stops at: {', '.join(stops) or 'nothing'}"
    return f"{''.join(parts)}⟦ answer starts ⟧\n\n{end}"


def _uses_template(tokenizer: Any, policy: str) -> bool:
    if policy not in ("auto", "never", "always"):
        raise ValueError(f"model.chat_template={policy}: choose auto, never or always")
    if policy == "always" and not tokenizer.chat_template:
        raise ValueError("model.chat_template=always: this tokenizer has no chat template; use auto or never")
    return policy != "never" and bool(tokenizer.chat_template)


def _around_user(tokenizer: Any, kwargs: dict[str, Any]) -> tuple[str, str]:
    """What the template writes before and after the words of a single user turn."""
    turns = [{"role": "user", "content": PLACEHOLDER}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **kwargs)
    if text.count(PLACEHOLDER) != 1:
        raise ValueError("model.chat_template: the template must write the user turn exactly once")
    prefix, _, suffix = text.partition(PLACEHOLDER)
    return prefix, suffix


def _end_of_turn(tokenizer: Any, enc: Encoder, kwargs: dict[str, Any]) -> set[int]:
    """The special tokens that directly follow an assistant's words in the template, such as <|im_end|>."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PLACEHOLDER}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False, **kwargs)
    return set(enc.leading_specials(text.rpartition(PLACEHOLDER)[2]))


def _stop_id(tokenizer: Any, enc: Encoder, stop: str) -> int:
    """The one token of a task's stop string: a special token, or plain text as spelled after other text."""
    if stop in enc.specials:
        return enc.specials[stop]
    ids, _ = enc.encode(stop, inner=True)
    if len(ids) != 1:
        raise ValueError(f"benchmark.stop={stop!r}: must be one token for this tokenizer, not {len(ids)}")
    return ids[0]


def main(argv: Sequence[str] | None = None, *, conf: Path | None = None) -> int:
    """Print the N-th rendered prompt of a benchmark for a model. `conf` replaces the configuration folder."""
    parser = argparse.ArgumentParser(
        prog="python -m kvbench.prompts",
        description="Print a rendered prompt: special tokens, the end of the context, the stop ids.",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="as for kvbench, e.g. model=tiny benchmark=needle; show=N for the N-th prompt (0 is the first)",
    )
    overrides = parser.parse_args(argv).overrides
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from kvbench.messages import one_line

    try:
        print(_nth_prompt(overrides, conf))
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        # hydra wraps what a benchmark's constructor raises; the user needs the line inside
        reason = error.__cause__ if isinstance(error.__cause__, ValueError) else error
        print(one_line(reason, overrides), file=sys.stderr)
        return 1
    return 0


def _nth_prompt(overrides: Sequence[str], conf: Path | None) -> str:
    import hydra
    from omegaconf import OmegaConf

    from kvbench import config, models, paths

    config.register()
    wanted = [item.partition("=")[2] for item in overrides if item.startswith("show=")] or ["0"]
    if not wanted[-1].isdigit():
        raise ValueError(f"show={wanted[-1]}: the number of a prompt, 0 for the first")
    number = int(wanted[-1])
    with hydra.initialize_config_dir(str(conf or paths.conf_dir()), version_base=None):
        cfg = hydra.compose("config", [item for item in overrides if not item.startswith("show=")])
    node: Any = OmegaConf.to_container(cfg.model, resolve=True)
    tokenizer, limit = models.load_tokenizer(node), models.max_length(node)
    samples = hydra.utils.instantiate(cfg.benchmark).samples(tokenizer)
    if number >= len(samples):
        raise ValueError(f"show={number}: this benchmark has {len(samples)} prompts, the first is 0")
    prompt = render(
        tokenizer,
        samples[number],
        question=cfg.benchmark.get("question", "aware"),
        chat_template=node["chat_template"],
        chat_kwargs=node["chat_kwargs"],
        eos_ids=models.eos_ids(node, tokenizer),
        max_length=limit,
    )
    return show(prompt, tokenizer)


if __name__ == "__main__":
    raise SystemExit(main())
