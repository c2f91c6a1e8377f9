"""The prompts of commands that look at one prompt: the words of the user, or a sample of a benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvbench.benchmarks.base import Benchmark, Sample, benchmarks_of
from kvbench.prompts import facts, renderer, span_of
from kvbench.prompts.prompt import Prompt
from kvbench.prompts.strict import render

if TYPE_CHECKING:
    from kvbench.models import ModelSpec


@dataclass(frozen=True)
class Chosen:
    """A rendered prompt.

    Attributes:
        name: what it is, for headings.
        span: tokens that are compressed.
    """

    name: str
    prompt: Prompt
    span: int


def nth_prompt(spec: ModelSpec, tokenizer: Any, benchmark: Any, number: int) -> Chosen:
    """Return a sample of a benchmark (0 is the first) as a model reads it.

    Raises:
        ValueError: there are fewer samples.
    """
    for seen, (part, sample) in enumerate(_samples(spec, tokenizer, benchmark)):
        if seen == number:
            prompt = renderer(spec, tokenizer, part)(sample)
            span = prompt.context_len if span_of(part) == "context" else len(prompt.ids)
            return Chosen(sample.id, prompt, span)
    raise ValueError(f"show={number}: this benchmark has {seen + 1} prompts, the first is 0")


def text_prompt(spec: ModelSpec, tokenizer: Any, text: str) -> Chosen:
    """Return a text as a model reads it: in its chat template, unless `model.chat_template=never`."""
    from kvbench import models

    sample = Sample("prompt", text, "", "", (), 1)
    limit = models.max_length(spec)
    chat: dict[str, Any] = {"chat_template": spec.chat_template, "chat_kwargs": spec.chat_kwargs}
    prompt = render(tokenizer, sample, max_length=limit, eos_ids=models.end_ids(spec, tokenizer).all, **chat)
    return Chosen("prompt", prompt, len(prompt.ids))


def _samples(spec: ModelSpec, tokenizer: Any, benchmark: Any) -> Iterator[tuple[Benchmark, Sample]]:
    for part in benchmarks_of(benchmark, facts(spec)):
        for sample in part.samples(tokenizer):
            yield part, sample
