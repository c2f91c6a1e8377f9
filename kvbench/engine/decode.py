"""The engine's loop: a prompt goes in once, every variant generates greedily, all rows in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbench.cache.base import KVCache
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.engine.attention import AttentionPass, kvbench_attention
from kvbench.engine.prefill import ContinuePass, PrefillPass, now
from kvbench.engine.variant import Generation, PromptLike, Timings, Variant
from kvbench.methods.dials import did_you_mean

CACHES: dict[str, Callable[[int], KVCache]] = {"ragged": RaggedCache, "masked": MaskedCache}


def make_cache(kind: str, num_layers: int) -> KVCache:
    """A cache by name.

    Raises:
        ValueError: neither ragged nor masked.
    """
    if kind not in CACHES:
        raise ValueError(f"engine.cache={kind}: no such cache.{did_you_mean(kind, CACHES)}")
    return CACHES[kind](num_layers)


def num_layers(model: PreTrainedModel) -> int:
    """Decoder layers of the model."""
    return int(model.config.get_text_config().num_hidden_layers)


@dataclass
class _Row:
    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    end: float = 0.0
    kept_max: int = 0


@torch.inference_mode()
def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptLike,
    variants: Sequence[Variant],
    *,
    max_new_tokens: int,
    cache: str = "ragged",
    question: str = "aware",
) -> list[Generation]:
    """Prefill `prompt` once and let every variant generate from what it keeps.

    Args:
        question: "aware" compresses the whole prompt; "agnostic" compresses the context alone and then appends the
            question's tokens, uncompressed.

    Returns:
        One generation per variant, in order.

    Raises:
        ValueError: no variants, an impossible budget on this prompt, an empty prompt.
    """
    if not variants or not prompt.ids or max_new_tokens < 1:
        raise ValueError("generate needs at least one variant, one prompt token and max_new_tokens=1")
    if question not in ("aware", "agnostic"):
        raise ValueError(f"question={question}: must be aware or agnostic")
    if question == "agnostic" and not 0 < prompt.context_len < len(prompt.ids):
        raise ValueError("question=agnostic: the prompt needs a context and a question, see kvbench.prompts.render")
    kv = make_cache(cache, num_layers(model))
    with kvbench_attention(model):
        return _Decoding(model, tokenizer, prompt, variants, kv, max_new_tokens, question).run()


class _Decoding:
    """One prompt's way through the engine. Rows are variants; row i is variant i in the cache."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: PromptLike,
        variants: Sequence[Variant],
        cache: KVCache,
        max_new_tokens: int,
        question: str,
    ) -> None:
        self._model, self._tokenizer, self._prompt = model, tokenizer, prompt
        self._variants, self._cache, self._max = variants, cache, max_new_tokens
        self._device = next(model.get_input_embeddings().parameters()).device
        self._ids_T = torch.tensor(list(prompt.ids), device=self._device)
        self._span = prompt.context_len if question == "agnostic" else len(prompt.ids)
        self._rows = [_Row() for _ in variants]

    def run(self) -> list[Generation]:
        begin = now(self._device)
        rest = len(self._ids_T) - self._span
        prefill = PrefillPass(
            self._variants,
            self._cache,
            num_layers=num_layers(self._model),
            token_ids=self._ids_T[: self._span],
            reserve=rest + self._max,
            spans={
                "context": (0, self._prompt.context_len),
                "question": (self._prompt.context_len, len(self._ids_T)),
            },
        )
        logits_BV = self._forward(self._ids_T[None, : self._span], 0, prefill)
        prefill.finish()
        prefilled = now(self._device)
        count = len(self._variants)
        measured = [
            (self._cache.lengths(row), self._cache.used_bytes(row), self._cache.slack_bytes(row))
            for row in range(count)
        ]
        if rest:
            question_BT = self._ids_T[None, self._span :].expand(count, -1)
            logits_BV = self._forward(question_BT, self._span, ContinuePass(self._cache, range(count), self._span))
        first = self._choose(logits_BV, 0).expand(count).tolist()
        ttft = now(self._device) - begin
        self._loop(first)
        generations = []
        for row, (state, (kept, used, slack)) in enumerate(zip(self._rows, measured, strict=True)):
            steps = len(state.ids) - 1
            generations.append(
                Generation(
                    text=self._text(state),
                    token_ids=state.ids,
                    finish_reason=state.finish or "length",
                    prompt_tokens=len(self._ids_T),
                    span=self._span,
                    budget_tokens=prefill.tokens[row],
                    kept=kept,
                    kept_max=max(state.kept_max, max(map(max, kept))),
                    kv_bytes=used,
                    slack_bytes=slack,
                    kv_bytes_full=prefill.full_bytes,
                    rows=count,
                    timings=Timings(
                        prefill_s=prefilled - begin - prefill.compress_s,
                        compress_s=prefill.compress_s,
                        ttft_s=ttft,
                        tpot_s=(state.end - begin - ttft) / steps if steps else None,
                    ),
                )
            )
        return generations

    def _loop(self, tokens: list[int]) -> None:
        """Greedy decoding of all rows in lockstep; a row leaves the batch when it stops."""
        active = list(range(len(tokens)))
        position = len(self._ids_T)
        while True:
            active, tokens = self._take(active, tokens)
            if not active:
                return
            ids_BT = torch.tensor(tokens, device=self._device)[:, None]
            logits_BV = self._forward(ids_BT, position, ContinuePass(self._cache, active, position))
            position += 1
            tokens = self._choose(logits_BV, position - len(self._ids_T)).tolist()

    def _choose(self, logits_BV: Tensor, made: int) -> Tensor:
        """The greedy tokens [B] after `made` new ones; a stop is out of the question below the least number."""
        if made < self._prompt.min_new_tokens:
            logits_BV = logits_BV.clone()
            logits_BV[:, sorted(self._prompt.stop_ids)] = -torch.inf
        return logits_BV.argmax(-1)

    def _take(self, active: list[int], tokens: list[int]) -> tuple[list[int], list[int]]:
        """Add one token to every active row; the rows that go on, and their tokens."""
        stop_ids = self._prompt.stop_ids
        done: list[int] = []
        for row, token in zip(active, tokens, strict=True):
            state = self._rows[row]
            state.ids.append(token)
            if token in stop_ids and (len(state.ids) > 1 or self._prompt.first_may_stop):
                state.finish = "stop"
            elif len(state.ids) == self._max:
                state.finish = "length"
            if state.finish is not None:
                state.end = now(self._device)
                state.kept_max = max(map(max, self._cache.lengths(row)))
                done.append(row)
        if done:
            self._cache.release(done)
        going = [(r, t) for r, t in zip(active, tokens, strict=True) if self._rows[r].finish is None]
        return [r for r, _ in going], [t for _, t in going]

    def _forward(self, ids_BT: Tensor, position: int, attention: AttentionPass) -> Tensor:
        """Logits [B, V] of the last token; `position` is the number of tokens seen before."""
        batch, tokens = ids_BT.shape
        positions = torch.arange(position, position + tokens, device=self._device).expand(batch, -1)
        out = self._model(
            input_ids=ids_BT, position_ids=positions, use_cache=False, logits_to_keep=1, kvbench=attention
        )
        return out.logits[:, -1]

    def _text(self, state: _Row) -> str:
        ids = state.ids[:-1] if state.finish == "stop" else state.ids
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
