"""The engine's loop: one prefill per context, greedy generation by every variant, one decode batch for all rows.

Rows of different prompts share the batch, because a ragged cache allows any lengths. Prompts join when half of the rows
have left, several at once, because each time the cache must be laid out again.

Shape suffixes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbench.engine.attention import Forward, kvbench_attention, last_logits
from kvbench.engine.caches import ContinuePass, LayerCaches, Place, device_of, make_cache
from kvbench.engine.clock import now
from kvbench.engine.fused import fused_step
from kvbench.engine.greedy import choose, take
from kvbench.engine.limits import RequestLimits
from kvbench.engine.probe import checked_plan
from kvbench.engine.requests import Answer, Draw, EqualLengths, check_request, row_errors
from kvbench.engine.rope import depends_on_length, forget_lengths
from kvbench.engine.row import OpenRequest, Row, failed_generation
from kvbench.engine.start import feed_prompt, prepare, start_prefill
from kvbench.engine.steps import recorded_steps
from kvbench.engine.variant import Generation, Request, Variant, span_tokens, spans_of
from kvbench.methods.part_call import PartError


@torch.inference_mode()
def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    draw: Draw,
    *,
    cache: str = "ragged",
    kernel: str = "auto",
    graph: str = "auto",
    fused: str = "auto",
    question: str = "aware",
    max_length: int | None = None,
    on_step: Callable[[float, bool], None] | None = None,
) -> Generator[Answer, None, None]:
    """Answer requests, each as soon as its last row has stopped, with one generation per row, in order.

    A prompt that the model cannot answer gives failed generations with an error, and so does a row whose logits are
    not finite. The other rows of the batch go on.

    Args:
        draw: returns the next request that may join the open ones, or None. It is called when half of the rows have
            stopped, repeatedly until it returns None, and not while a step has been started ahead. If it returns None
            for an empty batch, the stream ends.
        cache, kernel: as `make_cache` takes them.
        graph: record decode steps as CUDA graphs: "auto" (if possible), "true", "false".
        fused: use our own small ops between the products of decode steps: "auto" (if possible), "true", "false".
        question: "aware" compresses the whole prompt; "agnostic" compresses the context alone and then appends the
            question's tokens, uncompressed.
        max_length: tokens that a prompt and its answer may have together; by default the model's own limit.
        on_step: called after every decode step with its seconds, and whether a recorded graph ran it. A step that was
            started ahead lasts from the end of the one before.

    Raises:
        ValueError: a model that the engine cannot run, no rows, an impossible budget on a prompt, an empty
            prompt, prompts of one request whose contexts differ, a kernel that cannot run here.
    """
    if question not in ("aware", "agnostic"):
        raise ValueError(f"question={question}: must be aware or agnostic")
    plan = checked_plan(model)
    step = fused_step(model, plan, fused)
    caches = LayerCaches(plan, make_cache(model, cache, kernel))
    batch = _Batch(model, tokenizer, caches, RequestLimits(model, plan, max_length), question, graph, step)
    one_prompt = depends_on_length(model)
    parts = EqualLengths(draw) if one_prompt else None
    next_request = draw if parts is None else parts.draw
    try:
        with kvbench_attention(model):
            while True:
                joining: list[Request] = []
                while (batch.half_empty or joining) and not (one_prompt and (batch.requests or joining)):
                    request = next_request([*batch.requests, *joining])
                    if request is None:
                        break
                    joining.append(request)
                if joining:
                    answers: Iterable[Answer] = batch.join(joining)
                elif batch.requests:
                    seconds, replayed, answers = batch.step()
                    if on_step is not None:
                        on_step(seconds, replayed)
                else:
                    return
                for answer in answers:
                    whole = answer if parts is None else parts.join(*answer)
                    if whole is not None:
                        yield whole
    finally:
        batch.close()
        forget_lengths(model)


class _Batch:
    """The rows that decode together."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        caches: LayerCaches,
        limits: RequestLimits,
        question: str,
        graph: str,
        step: Forward | None,
    ) -> None:
        self._model, self._tokenizer, self._limits, self._question = model, tokenizer, limits, question
        self._caches, self._cache = caches, caches.kv
        self._device = device_of(model)
        self._open: list[OpenRequest] = []
        self._active: list[Row] = []
        self._next_row = self._full = 0
        self._clock = self._end = 0.0  # seconds of all steps; when the last one was done
        self._call = partial(last_logits, model)  # a bound method's cycle would wait for the garbage collector
        self._step = step or self._call
        self._ran = caches.kv.kernel, "transformers" if step is None else "fused"
        self._steps = recorded_steps(model, caches, self._step, graph)

    @property
    def requests(self) -> list[Request]:
        """The requests with unfinished rows."""
        return [entry.request for entry in self._open]

    @property
    def half_empty(self) -> bool:
        """Return True if half of the rows have stopped. Requests join then, which costs a new layout of the cache."""
        return not self._under_way and 2 * len(self._active) <= self._full

    @property
    def _under_way(self) -> bool:
        """True if a step was started ahead. The batch must stay as it is until it is done."""
        return self._steps is not None and self._steps.under_way

    def close(self) -> None:
        """Wait for a step under way, whose tokens nobody wants."""
        if self._steps is not None:
            self._steps.close()

    def join(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """Prefill requests one after the other and choose their first tokens. Yield those that are complete already."""
        assert not self._under_way
        new: list[OpenRequest] = []
        self._caches.compact()
        for request in requests:
            failed = self._failed(request)
            if len(failed) < len(request.rows):
                try:
                    new.append(self._prefill(request, failed))
                except PartError as error:
                    error.request = request
                    raise
            else:
                yield request, [failed[place] for place in range(len(request.rows))]
        begin = now(self._device)
        for entry in new:  # the cache lays out the rows of all new requests here
            for row in entry.rows:
                row.measure(self._cache)
        rows = sum(len(entry.rows) for entry in new)
        layout_s = (now(self._device) - begin) / max(1, rows)
        self._full = len(self._active) + rows
        for entry in new:
            self._open.append(entry)
            self._active += entry.rows
            entry.together, entry.layout_s = self._full, layout_s
        for entry in new:
            self._first_tokens(entry)
        yield from self._answers()

    def step(self) -> tuple[float, bool, list[Answer]]:
        """Add one token to every active row. Return the seconds, whether a graph ran it, and the complete requests."""
        begin, rows, steps = self._end if self._under_way else now(self._device), self._active, self._steps
        if steps is None:
            tokens, replayed = choose(rows, self._forward([[row.ids[-1]] for row in rows], rows)), False
        else:
            tokens, replayed = steps(rows), steps.was_replayed
        self._end = time.perf_counter() if self._under_way else now(self._device)
        self._clock += self._end - begin
        self._take(rows, tokens)
        return self._end - begin, replayed, [] if self._under_way else list(self._answers())

    def _failed(self, request: Request) -> dict[int, Generation]:
        """Return the generations of the rows that the model cannot answer, by their index in the request."""
        check_request(request, self._question)
        span = span_tokens(request.prompts[0], self._question)
        errors = row_errors(request, self._question, self._limits, self._model, self._tokenizer)
        return {
            place: failed_generation(request.rows[place][0], span, self._ran, error) for place, error in errors.items()
        }

    def _prefill(self, request: Request, failed: dict[int, Generation]) -> OpenRequest:
        """Prefill the context of a request, for the rows that have not failed."""
        prepare(self._model, self._tokenizer, request.variants)
        forget_lengths(self._model)
        begin = now(self._device)
        context = request.prompts[0]
        span = span_tokens(context, self._question)
        ids_T = torch.tensor(list(context.ids[:span]), device=self._device)
        live = [(place, *pair) for place, pair in enumerate(request.rows) if place not in failed]
        places: dict[Variant, list[Place]] = {}
        for row_id, (_, prompt, variant) in enumerate(live, self._next_row):
            reserve = len(prompt.ids) - span + request.max_new_tokens
            places.setdefault(variant, []).append(Place(row_id, reserve))
        variants = list(places)
        spans = spans_of(context, span)
        about: dict[str, Any] = {"token_ids": ids_T, "spans": spans, "task": context.task, "seed": request.seed}
        prefill = start_prefill(
            self._model,
            self._tokenizer,
            variants,
            self._caches,
            places=[[] if variant.method.feed else rows_of for variant, rows_of in places.items()],
            save_kept=request.save_kept,
            **about,
        )
        choices = dict(zip(variants, prefill.choices, strict=True))
        rows = [
            Row(row_id, place, prompt, choices[variant], request.max_new_tokens, span)
            for row_id, (place, prompt, variant) in enumerate(live, self._next_row)
        ]
        self._next_row += len(rows)
        logits: dict[int, Tensor] = {}
        shared = [row for row in rows if row.choice.places]
        if shared:
            try:
                logits_BV = self._call(ids_T[None], torch.arange(span, device=self._device)[None], prefill)
            finally:
                prefill.close()
            logits |= {row.id: logits_BV[0] for row in shared}
        seconds = now(self._device) - begin
        for feed in dict.fromkeys(variant.method.feed for variant in variants):
            if feed is not None:
                fed = {variant: places[variant] for variant in variants if variant.method.feed == feed}
                begin = now(self._device)
                attention, of_rows = feed_prompt(self._model, self._tokenizer, fed, self._caches, **about)
                feed_s = now(self._device) - begin - attention.copies_s
                prefill.full_bytes = max(prefill.full_bytes, attention.full_bytes)
                logits |= of_rows
                for row in rows:
                    row.feed_s = feed_s if row.id in of_rows else row.feed_s
        return OpenRequest(request, rows, failed, prefill, seconds - prefill.total_s, logits)

    def _first_tokens(self, entry: OpenRequest) -> None:
        """Choose the first token of every row, after the row's question. Questions of equal length go together."""
        logits, entry.logits = entry.logits, {}
        lengths: dict[int, list[Row]] = {}
        for row in entry.rows:
            lengths.setdefault(len(row.prompt.ids), []).append(row)
        tokens: dict[int, int] = {}
        for rows in lengths.values():
            begin = now(self._device)
            questions = [list(row.prompt.ids[row.seen :]) for row in rows]
            of_rows_BV = (
                self._forward(questions, rows) if questions[0] else torch.stack([logits[row.id] for row in rows])
            )
            tokens |= zip((row.id for row in rows), choose(rows, of_rows_BV), strict=True)
            seconds = now(self._device) - begin
            for row in rows:
                row.first_token_s, row.began_s = seconds, self._clock
        self._take(entry.rows, [tokens[row.id] for row in entry.rows])

    def _take(self, rows: Sequence[Row], tokens: Sequence[int]) -> None:
        """Add one token to each row that has not stopped. Those that have leave the batch once no step is under way."""
        going = [(row, token) for row, token in zip(rows, tokens, strict=True) if row.finish is None]
        dtype = self._model.dtype  # transformers looks for it among all parameters
        for row, token in going:
            take(row, token, dtype)
            if row.finish is not None:
                row.stop(self._cache, self._clock)
        done = [row.id for row in self._active if row.finish is not None]
        if done and not self._under_way:
            self._caches.release(done)
            self._active = [row for row in self._active if row.finish is None]

    def _answers(self) -> Iterator[Answer]:
        """Yield the requests whose rows have all stopped."""
        done = [entry for entry in self._open if entry.is_complete]
        self._open = [entry for entry in self._open if entry not in done]
        for entry in done:
            yield entry.request, entry.generations(self._text, self._ran)

    def _text(self, row: Row) -> str:
        """Return the text of a row, without the stop token."""
        return str(self._tokenizer.decode(row.ids[:-1] if row.finish == "stop" else row.ids, skip_special_tokens=True))

    def _forward(self, ids: Sequence[Sequence[int]], rows: Sequence[Row]) -> Tensor:
        """Return the logits [B, V] after T more tokens of each row, eagerly."""
        tokens = len(ids[0])
        seen_B1 = torch.tensor([[row.seen] for row in rows], device=self._device)
        position_BT = seen_B1 + torch.arange(tokens, device=self._device)
        attention = ContinuePass(self._caches, [row.id for row in rows], ids)
        forward = self._call if tokens > 1 else self._step
        logits_BV = forward(torch.tensor(ids, device=self._device), position_BT, attention)
        for row in rows:
            row.seen += tokens
        return logits_BV
