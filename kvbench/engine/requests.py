"""Requests before their prefill: the rows that a model cannot answer, and prompts that must not share a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbench.engine.caches import cache_shape
from kvbench.engine.limits import RequestLimits
from kvbench.engine.model_view import view_of
from kvbench.engine.passes import longest_pass
from kvbench.engine.variant import Generation, Request, Variant, context_key, span_tokens, spans_of
from kvbench.methods.allowance import allowed
from kvbench.methods.prompt_facts import NO_SPANS, Spans

Draw = Callable[[Sequence[Request]], Request | None]
"""Returns the next request that may join the given ones; None if none may join, or none is left."""

Answer = tuple[Request, list[Generation]]


def check_request(request: Request, question: str) -> None:
    """Raise ValueError for a request that no model could answer."""
    if not request.rows:
        raise ValueError("variants: give at least one")
    if request.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={request.max_new_tokens}: must be at least 1")
    if not all(prompt.ids for prompt in request.prompts):
        raise ValueError("prompts: one has no tokens")
    for prompt in request.prompts:
        if question == "agnostic" and not 0 < prompt.context_len < len(prompt.ids):
            raise ValueError("question=agnostic: the prompt needs a context and a question, see kvbench.prompts.render")
    if len({context_key(prompt, question) for prompt in request.prompts}) > 1:
        raise ValueError("the prompts of a request must have the same context and task; give each its own request")


def row_errors(
    request: Request,
    question: str,
    limits: RequestLimits,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
) -> dict[int, str]:
    """Return why the model cannot answer rows of a request, by their index; nothing for those that it can answer."""
    span = span_tokens(request.prompts[0], question)
    ids, spans = request.prompts[0].ids[:span], spans_of(request.prompts[0], span)
    of_prompt = {id(prompt): limits.error(prompt.ids, request.max_new_tokens, span) for prompt in request.prompts}
    of_variant = {v: pass_error(v, ids, limits, model, tokenizer, spans) for v in request.variants}
    errors = {
        place: of_prompt[id(prompt)] or of_variant[variant] for place, (prompt, variant) in enumerate(request.rows)
    }
    return {place: error for place, error in errors.items() if error is not None}


def pass_error(
    variant: Variant,
    ids: Sequence[int],
    limits: RequestLimits,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    spans: Spans = NO_SPANS,
) -> str | None:
    """Return why a variant cannot run its own forward passes on a context; None if it can, or needs none."""
    method, span = variant.method, len(ids)
    if method.probe is None:
        return None
    tokens = allowed(method, variant.budget, span, cache_shape(model))
    if not method.drops(None if tokens is None else tokens.tokens, span):
        return None
    return limits.pass_error(method.name, span, longest_pass(method.probe, ids, view_of(model, tokenizer), spans))


class EqualLengths:
    """A queue that cuts requests into parts whose prompts have equal lengths, and puts the answers together again.

    A model whose rotary frequencies depend on the longest row of a batch needs that. Its contexts are prefilled once
    for every length of a question.
    """

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._waiting: list[tuple[Request, list[int]]] = []
        self._whole: Request | None = None
        self._places: dict[Request, list[int]] = {}
        self._done: dict[int, Generation] = {}

    def draw(self, in_flight: Sequence[Request]) -> Request | None:
        """Return the next part; None if none is left, or another part is not answered yet."""
        if in_flight:
            return None
        if not self._waiting:
            self._whole = self._draw([])
            if self._whole is None:
                return None
            lengths: dict[int, list[int]] = {}
            for place, (prompt, _) in enumerate(self._whole.rows):
                lengths.setdefault(len(prompt.ids), []).append(place)
            self._waiting = [(self._whole.select(places), places) for places in lengths.values()]
        part, places = self._waiting.pop(0)
        self._places[part] = places
        return part

    def join(self, part: Request, generations: Sequence[Generation]) -> Answer | None:
        """Take the answers of a part. Return those of the whole request if they are complete."""
        self._done |= zip(self._places.pop(part), generations, strict=True)
        if self._waiting or self._whole is None:
            return None
        whole, done = self._whole, self._done
        self._whole, self._done = None, {}
        return whole, [done[place] for place in range(len(whole.rows))]
