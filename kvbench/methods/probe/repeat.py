"""The model repeats the prompt: KVzip's passes and scores (Kim et al. 2025, arXiv 2505.23416)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.context import LayerContext
from kvbench.methods.fields import check_at_least
from kvbench.methods.model_view import ModelView
from kvbench.methods.probing import Pass, Probe, ProbeRange
from kvbench.methods.prompt_facts import NO_SPANS, Spans

FIRST = "\n\nRepeat the previous context exactly."
NEXT = "\n\nRepeat the part of the previous context exactly, starting with "  # with its space, as in KVzip's own code


@dataclass(frozen=True)
class Repeat(Probe):
    """A pass per `chunk` tokens after the sinks: an instruction, what ends its turn, and the chunk as its answer.

    A token is worth the most attention that a query of its pass pays to it, among sinks, chunk and pass. Later
    instructions end with the `overlap` tokens before the chunk. What the chat template writes first counts as sinks.
    """

    chunk: int = 2000
    sinks: int = 4
    overlap: int = 8

    def __post_init__(self) -> None:
        for field, minimum in (("chunk", 1), ("sinks", 0), ("overlap", 0)):
            check_at_least(self, field, minimum)

    def passes(self, ids: Sequence[int], model: ModelView, spans: Spans = NO_SPANS) -> list[Pass]:
        """Return the ids of each pass, and its chunk."""
        passes, lead = [], model.encode(FIRST)
        for begin in range(self._sinks(spans), len(ids), self.chunk):
            end = min(begin + self.chunk, len(ids))
            passes.append(([*lead, *model.answer_prefix(), *ids[begin:end]], ProbeRange(begin, end)))
            lead = [*model.encode(NEXT), *ids[max(0, end - self.overlap) : end]]
        return passes

    def observe(self, before: Tensor | None, ctx: LayerContext, q: Tensor, k: Tensor, about: ProbeRange) -> Tensor:
        """Return [U, T] scores with those of one more chunk; softmax rows are taken in blocks, to save memory."""
        score_UT = ctx.k.new_zeros(ctx.k.shape[:2], dtype=torch.float32) if before is None else before
        sinks, part_UT = self._sinks(ctx.spans), score_UT[:, about.begin : about.end]
        k_USD = torch.cat([ctx.k[:, :sinks], ctx.k[:, about.begin : about.end], k], 1).float()
        slot_S, first = torch.arange(k_USD.shape[1], device=k.device), k_USD.shape[1] - k.shape[1]
        for q_HBD, slot_B in zip(q.split(256, 1), slot_S[first:].split(256), strict=True):
            logits = q_HBD.float().unflatten(0, (len(k), -1)) @ k_USD[:, None].mT * ctx.scaling
            best_US = logits.masked_fill(slot_S > slot_B[:, None], -torch.inf).softmax(-1).amax((1, 2))
            part_UT.copy_(part_UT.maximum(best_US[:, sinks:first]))
        return score_UT

    def _sinks(self, spans: Spans) -> int:
        return max(self.sinks, spans.get("template", (0, 0))[1])
