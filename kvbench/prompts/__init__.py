"""The way from text to token ids: chat template, BOS, the border of the context, truncation, stop ids.

kvbench prompts model=tiny benchmark=needle show=3
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvbench.benchmarks.base import Benchmark, ModelFacts, Sample, resolve
from kvbench.encoding import cleaned_up, frame, has_template
from kvbench.prompts import upstream
from kvbench.prompts.prompt import VERSION, Prompt, show
from kvbench.prompts.strict import native_bos, render

if TYPE_CHECKING:
    from kvbench.models import ModelSpec

__all__ = [
    "VERSION",
    "Prompt",
    "answer_text",
    "facts",
    "frame_hash",
    "is_dated",
    "native_bos",
    "render",
    "renderer",
    "resolve",
    "show",
    "span_of",
]

log = logging.getLogger(__name__)

_frames: dict[str, tuple[str | None, bool]] = {}  # of a model: the hash, and if it depends on the date


def facts(spec: ModelSpec) -> ModelFacts:
    """Return the facts of a model that published protocols may depend on. Loads no weights."""
    from kvbench import models

    return ModelFacts(
        name=spec.name,
        path=spec.source.own_name() or "",
        max_length=models.max_length(spec),
        chat_template=spec.chat_template,
        chat_kwargs=spec.chat_kwargs,
    )


def frame_hash(spec: ModelSpec) -> str | None:
    """Return a hash of everything that a model's chat template writes around words, for the identity.

    None where no template is used. The console says once per model if the template writes today's date. Raises
    ValueError for a template that cannot be rendered. Loads the tokenizer, but no weights.
    """
    return _frame(spec)[0]


def is_dated(spec: ModelSpec) -> bool:
    """Return True if a model's chat template writes today's date, so that the run is another one tomorrow."""
    return _frame(spec)[1]


def _frame(spec: ModelSpec) -> tuple[str | None, bool]:
    from kvbench import models

    key = repr(spec)
    if key not in _frames:
        tokenizer = None if spec.chat_template == "never" else models.load_tokenizer(spec)
        if tokenizer is None or not has_template(tokenizer, spec.chat_template):
            _frames[key] = None, False
        else:
            text, is_dated = frame(tokenizer, spec.chat_kwargs)
            if is_dated:
                _say_dated(spec.name, str(tokenizer.chat_template))
            _frames[key] = hashlib.sha256(text.encode()).hexdigest()[:16], is_dated
    return _frames[key]


def _say_dated(name: str, template: str) -> None:
    remedy = "set model.chat_template=never for prompts without it"
    if "date_string" in template:
        remedy = "fix it with +model.chat_kwargs.date_string='26 Jul 2024'"
    log.warning(
        "model.chat_template: the template of %s writes today's date, so tomorrow's runs have other prompts and are "
        "other runs; %s",
        name,
        remedy,
    )


def span_of(benchmark: Benchmark) -> str:
    """Return what is compressed: "prompt" or "context"."""
    if benchmark.question not in ("aware", "agnostic"):
        raise ValueError(f"benchmark.question={benchmark.question}: choose aware or agnostic")
    return benchmark.rendering.span or ("context" if benchmark.question == "agnostic" else "prompt")


def answer_text(prompt: Prompt, text: str) -> str:
    """Return the text of an answer as the protocol of its prompt decodes it."""
    return cleaned_up(text) if prompt.clean_up_spaces else text


def renderer(spec: ModelSpec, tokenizer: Any, benchmark: Benchmark) -> Callable[[Sample], Prompt]:
    """Return the function that renders the samples of a benchmark for a model. Loads no weights."""
    from kvbench import models

    limit, span = models.max_length(spec), span_of(benchmark)
    ends = models.end_ids(spec, tokenizer)
    chat: dict[str, Any] = {"chat_template": spec.chat_template, "chat_kwargs": spec.chat_kwargs}
    if benchmark.rendering.style == "strict":
        question = "agnostic" if span == "context" else "aware"
        return lambda sample: render(tokenizer, sample, question=question, eos_ids=ends.all, max_length=limit, **chat)
    rendering = resolve(benchmark.rendering, limit)
    return lambda sample: upstream.render(tokenizer, sample, rendering, span=span, ends=ends, max_length=limit, **chat)
