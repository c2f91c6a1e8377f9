"""The one place where text becomes token ids: chat template, BOS, the border of the context, truncation, stop ids.

python -m kvbench.prompts model=tiny benchmark=needle show=3
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kvbench.benchmarks.base import Benchmark, ModelFacts, Rendering, Sample
from kvbench.prompts import upstream
from kvbench.prompts.prompt import VERSION, Ends, Prompt, show
from kvbench.prompts.strict import native_bos, render

__all__ = ["VERSION", "Ends", "Prompt", "facts", "native_bos", "render", "renderer", "resolve", "show", "span_of"]

# LongBench's own limits for models of a known length leave room for the answer and the wrapper; the rest by analogy.
_ROOM = {4096: 3500, 8192: 7500, 16384: 15500, 32768: 31500}
_ANSWER_AND_WRAPPER = 1024


def facts(node: Mapping[str, Any]) -> ModelFacts:
    """What published protocols may ask of the model of a `model` node. Loads no weights."""
    from kvbench import models

    return ModelFacts(
        name=str(node["name"]),
        path=str(node.get("path") or ""),
        max_length=models.max_length(node),
        chat_template=str(node["chat_template"]),
        chat_kwargs=dict(node["chat_kwargs"]),
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


def renderer(node: Mapping[str, Any], tokenizer: Any, benchmark: Benchmark) -> Callable[[Sample], Prompt]:
    """The function that renders the samples of a benchmark for the model of a `model` node; no weights are loaded."""
    from kvbench import models

    limit, span = models.max_length(node), span_of(benchmark)
    ends = models.ends(node, tokenizer)
    chat: dict[str, Any] = {"chat_template": node["chat_template"], "chat_kwargs": node["chat_kwargs"]}
    if benchmark.rendering.style == "strict":
        question = "agnostic" if span == "context" else "aware"
        return lambda sample: render(tokenizer, sample, question=question, eos_ids=ends[0], max_length=limit, **chat)
    rendering = resolve(benchmark.rendering, limit)
    return lambda sample: upstream.render(
        tokenizer, sample, rendering, span=span, ends=Ends(*ends), max_length=limit, **chat
    )
