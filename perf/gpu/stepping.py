"""Greedy decoding of a batch for measurements, step by step, by the steps of the engine and by those it had before."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.base import KVCache, Recordable
from kvbench.engine import graph
from kvbench.engine.caches import ContinuePass, LayerCaches
from kvbench.engine.clock import now
from kvbench.engine.fused import fused_step
from kvbench.engine.probe import last_logits
from kvbench.engine.row import Row
from kvbench.engine.steps import Steps
from kvbench.engine.survey import survey

_EAGER = 3  # steps before the recording


class HostBetween:
    """Decode steps with the host in between: it uploads the input of each, chooses from the logits, and waits.

    Eager steps of the engine are such. Its recorded ones were, as long as their graph ended with the logits. They are
    called like `kvbench.engine.steps.Steps`. The rows and their memory must stay the same.

    Args:
        recorded: the cache and a recorder, for steps as graphs; None for eager ones.

    Attributes:
        replayed: steps that a graph ran.
        under_way: False, for no further step has started.
    """

    under_way = False

    def __init__(
        self,
        caches: LayerCaches,
        forward: graph.Forward,
        recorded: tuple[Recordable, graph.Recorder] | None,
        device: torch.device,
    ) -> None:
        self._caches, self._forward, self._recorder, self._device = caches, forward, recorded, device
        self._calls = self.replayed = 0
        self._recording: tuple[Any, ...] | None = None

    def __call__(self, rows: Sequence[Row], ahead: bool = True) -> list[int]:
        """Do a step of these rows and return the next token of each. No step starts ahead."""
        ids = [[row.ids[-1]] for row in rows]
        given = torch.tensor(ids, device=self._device), torch.tensor([[row.seen] for row in rows], device=self._device)
        attention = ContinuePass(self._caches, [row.id for row in rows], ids)
        self._calls += 1
        eager = self._recorder is None or self._calls <= _EAGER
        logits_BV = self._forward(*given, attention) if eager else self._replay(given, attention)
        for row in rows:
            row.seen += 1
        best_B = logits_BV.argmax(-1)
        finite_B = logits_BV.gather(1, best_B[:, None])[:, 0].isfinite()
        tokens: list[int] = torch.where(finite_B, best_B, -1).tolist()
        return tokens

    def _replay(self, given: tuple[Tensor, Tensor], attention: ContinuePass) -> Tensor:
        assert self._recorder is not None
        cache, record = self._recorder
        if self._recording is None:
            held = [x.clone() for x in given]
            out, replay = record(lambda: graph.Out(self._forward(*held, attention), None))
            self._recording = held, out.logits_BV, replay
        else:
            cache.advance(attention.rows, attention.ids)
        held, logits_BV, replay = self._recording
        for x, new in zip(held, given, strict=True):
            x.copy_(new)
        replay()
        self.replayed += 1
        return logits_BV


Stepping = Steps | HostBetween


class Decoding:
    """A batch whose rows have seen equally many tokens.

    Attributes:
        caches, rows: of the batch.
        fused: the fused step, if the model has one; `call` is a step of its own layers.
    """

    def __init__(self, model: Any, cache: KVCache, batch: int, seen: int, device: torch.device) -> None:
        self._model, self.caches, self._device = model, LayerCaches(survey(model), cache), device
        prompt: Any = SimpleNamespace(stop_ids=frozenset(), min_new_tokens=0, first_may_stop=True)
        self.rows = [Row(row, row, prompt, 0, sys.maxsize, seen, [7]) for row in range(batch)]
        self._ended = 0.0
        self.fused = fused_step(model, survey(model), "auto" if device.type == "cuda" else "true")

    @property
    def grown(self) -> int:
        """Tokens that each row has decoded."""
        return len(self.rows[0].ids) - 1

    def call(self, ids_B1: Tensor, position_B1: Tensor, attention: ContinuePass) -> Tensor:
        return last_logits(self._model, ids_B1, position_B1, attention)

    def recorded(self, forward: graph.Forward, cache: Recordable) -> Steps:
        """Return the engine's recorded steps by a forward function."""
        return Steps(self.caches, graph.GraphedSteps(forward, cache, graph.CudaRecorder(self._device)), self._device)

    def eager(self, forward: graph.Forward) -> HostBetween:
        """Return eager steps."""
        return HostBetween(self.caches, forward, None, self._device)

    def step(self, steps: Stepping, ahead: bool = True) -> float:
        """Decode one token for every row; returns seconds, since the last step if this one was started ahead.

        Args:
            ahead: False to leave no step under way.
        """
        begun = self._ended if steps.under_way else now(self._device)
        for row, token in zip(self.rows, steps(self.rows, ahead), strict=True):
            row.ids.append(token)
        self._ended = time.perf_counter() if steps.under_way else now(self._device)
        return self._ended - begun

    def take(self, steps: Stepping, count: int) -> list[float]:
        """Decode some tokens for every row; returns the seconds of each step. None is under way afterwards."""
        return [self.step(steps, ahead=left > 0) for left in reversed(range(count))]
