"""The engine's loop: prompts go in once, every variant generates greedily, all rows decode in one batch.

Rows of different prompts share the batch: a ragged cache does not mind. Prompts join when half of the batch has left,
several at once, because joining lays the cache out anew.

Shape suffixes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbench.cache.base import KVCache
from kvbench.engine.attention import AttentionPass, kvbench_attention
from kvbench.engine.caches import make_cache, num_layers
from kvbench.engine.graph import Cuda, Steps, wanted
from kvbench.engine.prefill import ContinuePass, PrefillPass, now
from kvbench.engine.variant import Generation, Request, Timings

Draw = Callable[[Sequence[Request]], Request | None]
"""The next request that may join those in flight; None if none may, or none is left."""


@torch.inference_mode()
def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    draw: Draw,
    *,
    cache: str = "ragged",
    kernel: str = "auto",
    graph: str = "auto",
    question: str = "aware",
    on_step: Callable[[float, bool], None] | None = None,
) -> Generator[tuple[Request, list[Generation]], None, None]:
    """Answer requests, each as soon as its last row has stopped, with one generation per variant, in order.

    Args:
        draw: gives the next request that may join those in flight, or None; asked when half of the rows have stopped,
            again and again until it says None. When it says so to an empty batch, the stream ends.
        cache, kernel: as `make_cache` takes them.
        graph: whether decode steps are recorded as CUDA graphs: "auto" where that can be done, "true", "false".
        question: "aware" compresses the whole prompt; "agnostic" compresses the context alone and then appends the
            question's tokens, uncompressed.
        on_step: called after every decode step with its seconds, and whether a recorded graph did it.

    Raises:
        ValueError: no variants, an impossible budget on a prompt, an empty prompt, a kernel that cannot run here.
    """
    if question not in ("aware", "agnostic"):
        raise ValueError(f"question={question}: must be aware or agnostic")
    apart = _mixes_rows(model)
    batch = _Batch(model, tokenizer, make_cache(model, cache, kernel), question, graph)
    with kvbench_attention(model):
        while True:
            joining: list[Request] = []
            while (batch.half_empty or joining) and not (apart and (batch.in_flight or joining)):
                request = draw([*batch.in_flight, *joining])
                if request is None:
                    break
                joining.append(request)
            if joining:
                yield from batch.join(joining)
            elif batch.in_flight:
                seconds, replayed, landed = batch.step()
                if on_step is not None:
                    on_step(seconds, replayed)
                yield from landed
            else:
                return


def _mixes_rows(model: PreTrainedModel) -> bool:
    """Whether the rotary frequencies of a forward call depend on its longest row (Phi-3 128k, dynamic NTK scaling).

    Prompts of such a model must not share a batch: a short one would be answered with a long one's frequencies.
    """
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = {one.get("rope_type") for one in (rope, *rope.values()) if isinstance(one, dict)}
    return bool(kinds & {"dynamic", "longrope"})


@dataclass
class _Row:
    """One generation on its way. `id` is its row in the cache, `seen` the tokens of its sequence so far."""

    id: int
    request: Request
    seen: int
    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    kept_max: int = 0
    clock: float = 0.0  # of the batch's decode steps: at the first token, then what passed until the last


@dataclass
class _Prefilled:
    """What is known of a request once its prompt is in the cache."""

    request: Request
    rows: list[_Row]
    prefill: PrefillPass
    prefill_s: float
    ttft_s: float
    logits_BV: Tensor | None
    measured: list[tuple[list[list[int]], int, int]] = field(default_factory=list)  # kept, used and slack bytes
    together: int = 0


class _Batch:
    """The rows that decode together."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        cache: KVCache,
        question: str,
        graph: str,
    ) -> None:
        self._model, self._tokenizer, self._cache, self._question = model, tokenizer, cache, question
        self._device = next(model.get_input_embeddings().parameters()).device
        self._flying: list[_Prefilled] = []
        self._active: list[_Row] = []
        self._rows_made = self._full = 0
        self._clock = 0.0
        self._call = partial(_logits, model)  # no method of this: nothing is to wait for the garbage collector
        self._steps = None
        if wanted(model, cache, graph):
            self._steps = Steps(self._call, cache, Cuda(), must=graph.lower() == "true")

    @property
    def _replayed(self) -> int:
        return 0 if self._steps is None else self._steps.replayed

    @property
    def in_flight(self) -> list[Request]:
        return [one.request for one in self._flying]

    @property
    def half_empty(self) -> bool:
        """Whether it is time to let requests join: each time costs a new layout of the cache."""
        return 2 * len(self._active) <= self._full

    def join(self, requests: Sequence[Request]) -> Iterator[tuple[Request, list[Generation]]]:
        """Prefill the requests one after the other; their rows have their first token afterwards."""
        new = [self._prefill(request) for request in requests]
        begin = now(self._device)
        for one in new:  # the cache lays out its rows now, once for all
            one.measured = [
                (self._cache.lengths(row.id), self._cache.used_bytes(row.id), self._cache.slack_bytes(row.id))
                for row in one.rows
            ]
        share = (now(self._device) - begin) / len(new)
        for one in new:
            one.prefill.compress_s += share
            one.ttft_s += share
        self._full = len(self._active) + sum(len(one.rows) for one in new)
        for one in new:
            self._flying.append(one)
            self._active += one.rows
            one.together = self._full
        for one in new:
            self._first_tokens(one)
        yield from self._landed()

    def step(self) -> tuple[float, bool, list[tuple[Request, list[Generation]]]]:
        """One more token for every active row: the seconds, whether a graph did it, and the requests that are done."""
        begin, before = now(self._device), self._replayed
        rows = self._active
        ids_BT = torch.tensor([[row.ids[-1]] for row in rows], device=self._device)
        logits_BV = self._forward(ids_BT, rows)
        tokens = self._choose(rows, logits_BV)
        seconds = now(self._device) - begin
        self._clock += seconds
        self._take(rows, tokens)
        return seconds, self._replayed > before, list(self._landed())

    def _prefill(self, request: Request) -> _Prefilled:
        prompt = request.prompt
        if not request.variants or not prompt.ids or request.max_new_tokens < 1:
            raise ValueError("generate needs at least one variant, one prompt token and max_new_tokens=1")
        agnostic = self._question == "agnostic"
        if agnostic and not 0 < prompt.context_len < len(prompt.ids):
            raise ValueError("question=agnostic: the prompt needs a context and a question, see kvbench.prompts.render")
        begin = now(self._device)
        span = prompt.context_len if agnostic else len(prompt.ids)
        ids_T = torch.tensor(list(prompt.ids[:span]), device=self._device)
        rows = [_Row(self._rows_made + i, request, span) for i in range(len(request.variants))]
        self._rows_made += len(rows)
        prefill = PrefillPass(
            request.variants,
            self._cache,
            first_row=rows[0].id,
            num_layers=num_layers(self._model),
            token_ids=ids_T,
            reserve=len(prompt.ids) - span + request.max_new_tokens,
        )
        logits_BV = self._call(ids_T[None], torch.arange(span, device=self._device)[None], prefill)
        prefill.finish()
        seconds = now(self._device) - begin
        return _Prefilled(request, rows, prefill, seconds - prefill.compress_s, seconds, logits_BV)

    def _first_tokens(self, one: _Prefilled) -> None:
        begin = now(self._device)
        logits_BV, rows = one.logits_BV, one.rows
        assert logits_BV is not None
        one.logits_BV = None
        question = list(one.request.prompt.ids[rows[0].seen :])
        if question:
            logits_BV = self._forward(torch.tensor([question] * len(rows), device=self._device), rows)
        tokens = self._choose(rows, logits_BV.expand(len(rows), -1))
        one.ttft_s += now(self._device) - begin
        for row in rows:
            row.clock = self._clock
        self._take(rows, tokens)

    def _choose(self, rows: Sequence[_Row], logits_BV: Tensor) -> list[int]:
        """The greedy token of every row; a stop is out of the question below the least number of new tokens."""
        held = [i for i, row in enumerate(rows) if len(row.ids) < row.request.prompt.min_new_tokens]
        if held:
            logits_BV = logits_BV.clone()
            for i in held:
                logits_BV[i, sorted(rows[i].request.prompt.stop_ids)] = -torch.inf
        chosen: list[int] = logits_BV.argmax(-1).tolist()
        return chosen

    def _take(self, rows: Sequence[_Row], tokens: Sequence[int]) -> None:
        """Add one token to each row; those that stop leave the batch."""
        done = []
        for row, token in zip(rows, tokens, strict=True):
            row.ids.append(token)
            prompt = row.request.prompt
            if token in prompt.stop_ids and (len(row.ids) > 1 or prompt.first_may_stop):
                row.finish = "stop"
            elif len(row.ids) == row.request.max_new_tokens:
                row.finish = "length"
            if row.finish is not None:
                row.clock = self._clock - row.clock
                row.kept_max = max(map(max, self._cache.lengths(row.id)))
                done.append(row.id)
        if done:
            self._cache.release(done)
            self._active = [row for row in self._active if row.finish is None]

    def _landed(self) -> Iterator[tuple[Request, list[Generation]]]:
        """The requests whose rows have all stopped."""
        landed = [one for one in self._flying if all(row.finish is not None for row in one.rows)]
        self._flying = [one for one in self._flying if one not in landed]
        for one in landed:
            yield one.request, [self._generation(one, i) for i in range(len(one.rows))]

    def _forward(self, ids_BT: Tensor, rows: Sequence[_Row]) -> Tensor:
        """Logits [B, V] after T more tokens of each row."""
        tokens = ids_BT.shape[1]
        seen_B1 = torch.tensor([[row.seen] for row in rows], device=self._device)
        attention = ContinuePass(self._cache, [row.id for row in rows], max(row.seen for row in rows))
        position_BT = seen_B1 + torch.arange(tokens, device=self._device)
        forward = self._call if self._steps is None or tokens > 1 else self._steps
        logits_BV = forward(ids_BT, position_BT, attention)
        for row in rows:
            row.seen += tokens
        return logits_BV

    def _generation(self, one: _Prefilled, index: int) -> Generation:
        row, (kept, used, slack) = one.rows[index], one.measured[index]
        ids = row.ids[:-1] if row.finish == "stop" else row.ids
        steps = len(row.ids) - 1
        return Generation(
            text=str(self._tokenizer.decode(ids, skip_special_tokens=True)),
            token_ids=row.ids,
            finish_reason=row.finish or "length",
            prompt_tokens=len(row.request.prompt.ids),
            span=one.prefill.span,
            budget_tokens=one.prefill.tokens[index],
            kept=kept,
            kept_max=max(row.kept_max, max(map(max, kept))),
            kv_bytes=used,
            slack_bytes=slack,
            kv_bytes_full=one.prefill.full_bytes,
            rows=one.together,
            kernel=self._cache.kernel,
            timings=Timings(one.prefill_s, one.prefill.compress_s, one.ttft_s, row.clock / steps if steps else None),
        )


def _logits(model: PreTrainedModel, ids_BT: Tensor, position_BT: Tensor, attention: AttentionPass) -> Tensor:
    """Of the last token of each row: [B, V]."""
    out = model(input_ids=ids_BT, position_ids=position_BT, use_cache=False, logits_to_keep=1, kvbench=attention)
    logits: Tensor = out.logits[:, -1]
    return logits
