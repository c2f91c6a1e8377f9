"""The one place where text becomes token ids: chat template, BOS, the border of the context, truncation, stop ids.

python -m kvbench.prompts model=tiny benchmark=needle show=3
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvbench.benchmarks.base import Benchmark, ModelFacts, Rendering, Sample
from kvbench.prompts import upstream
from kvbench.prompts.prompt import VERSION, Ends, Prompt, show
from kvbench.prompts.strict import native_bos, render

if TYPE_CHECKING:
    from kvbench.models import ModelSpec

__all__ = ["VERSION", "Ends", "Prompt", "facts", "native_bos", "render", "renderer", "resolve", "show", "span_of"]

# LongBench's own limits for models of a known length leave room for the answer and the wrapper; the rest by analogy.
_ROOM = {4096: 3500, 8192: 7500, 16384: 15500, 32768: 31500}
_ANSWER_AND_WRAPPER = 1024


def facts(spec: ModelSpec) -> ModelFacts:
    """Return what published protocols may ask of a model. Loads no weights."""
    from kvbench import models

    return ModelFacts(
        name=spec.name,
        path=spec.source.own_name() or "",
        max_length=models.max_length(spec),
        chat_template=spec.chat_template,
        chat_kwargs=spec.chat_kwargs,
    )


def resolve(rendering: Rendering, limit: int | None) -> Rendering:
    """The rendering with its length in numbers: "auto" becomes what the model's limit leaves for a prompt."""
    if rendering.max_length != "auto":
        return rendering
    if limit is None:
        return replace(rendering, max_length=None)
    return replace(rendering, max_length=_ROOM.get(limit) or max(limit - _ANSWER_AND_WRAPPER, limit // 2))


def span_of(benchmark: Benchmark) -> str:
    """What is compressed: "prompt" or "context"."""
    if benchmark.question not in ("aware", "agnostic"):
        raise ValueError(f"benchmark.question={benchmark.question}: choose aware or agnostic")
    return benchmark.rendering.span or ("context" if benchmark.question == "agnostic" else "prompt")


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
    return lambda sample: upstream.render(
        tokenizer, sample, rendering, span=span, ends=Ends(*ends), max_length=limit, **chat
    )
