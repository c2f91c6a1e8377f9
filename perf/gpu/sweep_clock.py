"""The time of a run by its stages, from marks that the engine's own timings do not have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from kvbench.engine.clock import now


@dataclass
class Clock:
    """The parts of a run that the engine's timings do not have, in seconds, from marks between its stages.

    Attributes:
        joined: from the draw of requests to the logits of the last of them.
        laid_out: from there to the first decode step.
        step_s: every decode step.
        replayed: steps that a graph ran.
    """

    device: torch.device
    joined: float = 0.0
    laid_out: float = 0.0
    step_s: list[float] = field(default_factory=list)
    replayed: int = 0
    _mark: float = 0.0
    _in_prompt: bool = False
    _stepping: bool = True

    def drawn(self) -> None:
        """Note that a request was drawn: its prefill may follow."""
        if self._stepping:
            self._mark, self._stepping = time.perf_counter(), False

    def begun(self, tokens: int) -> None:
        """Note the begin of a forward call. Those of one token are decode steps: a graph may be recording them."""
        self._in_prompt = tokens > 1

    def ended(self) -> None:
        """Note the output of a forward call."""
        if self._in_prompt:
            end = now(self.device)
            self.joined += end - self._mark
            self._mark = end

    def stepped(self, seconds: float, replayed: bool) -> None:
        """Note the end of a decode step."""
        if not self._stepping:
            self.laid_out += time.perf_counter() - seconds - self._mark
        self._stepping = True
        self.step_s.append(seconds)
        self.replayed += replayed


@contextmanager
def watched(model: Any, clock: Clock) -> Iterator[None]:
    """Tell the clock of all forward calls: they begin with the embeddings and end with the output, fused ones too."""
    hooks = (
        model.get_input_embeddings().register_forward_pre_hook(lambda _, args: clock.begun(args[0].shape[-1])),
        model.get_output_embeddings().register_forward_pre_hook(lambda *_: clock.ended()),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
