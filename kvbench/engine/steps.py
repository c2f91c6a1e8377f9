"""The recorded decode steps of a batch: inputs to the device, tokens to the host.

A recorded step chooses its tokens on the device. They come to the host by a copy into pinned memory, which is queued
after the step: the host waits for this copy alone.

Shape suffixes: B rows (one token each).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.engine.caches import ContinuePass, LayerCaches, device_of
from kvbench.engine.graph import CudaRecorder, Forward, GraphedSteps, recordable
from kvbench.engine.greedy import choose, is_free
from kvbench.engine.row import Row

Read = Callable[[], list[int]]
"""Waits for the tokens of a step and returns them."""


def recorded_steps(model: PreTrainedModel, caches: LayerCaches, forward: Forward, graph: str) -> Steps | None:
    """Return the recorded steps of a batch by a forward function; None if all steps are eager.

    Args:
        graph: "auto" (if possible), "true" or "false".

    Raises:
        ValueError: "true" although it is impossible; the message names the reason.
    """
    cache = recordable(model, caches.kv, graph)
    if cache is None:
        return None
    graphed = GraphedSteps(forward, cache, CudaRecorder(), must=str(graph).lower() == "true")
    return Steps(caches, graphed, device_of(model))


class Steps:
    """Decode steps: a call adds the last token of each row to the cache, and returns the next one of each row.

    Args:
        graphed: runs the steps, as graphs where it can.
    """

    def __init__(self, caches: LayerCaches, graphed: GraphedSteps, device: torch.device) -> None:
        self._caches, self._graphed, self._device = caches, graphed, device
        self._outbox = Outbox(device)

    @property
    def replayed(self) -> int:
        """Steps that a graph ran."""
        return self._graphed.replayed

    def __call__(self, rows: Sequence[Row]) -> list[int]:
        """Do a step of these rows."""
        return self._start(rows)()

    def _start(self, rows: Sequence[Row]) -> Read:
        ids = [[row.ids[-1]] for row in rows]
        seen = [[row.seen] for row in rows]

        def inputs() -> tuple[Tensor, Tensor]:
            return torch.tensor(ids, device=self._device), torch.tensor(seen, device=self._device)

        attention = ContinuePass(self._caches, [row.id for row in rows], ids)
        out = self._graphed(inputs, attention)
        for row in rows:
            row.seen += 1
        if out.token_B is not None and all(map(is_free, rows)):
            return self._outbox.send(out.token_B)
        self._graphed.chosen_on_host()
        tokens = choose(rows, out.logits_BV)
        return lambda: tokens


class Outbox:
    """Tokens on their way to the host, in two buffers in turn: those of one step may be read after the next is queued.

    A buffer in pinned memory is filled when the device's queue comes to it, and an event follows. On a CPU the copy is
    done at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: list[Tensor] = []

    def send(self, token_B: Tensor) -> Read:
        """Queue a copy of tokens. Return a function that waits for it; call it before the next but one `send`."""
        on_gpu = self._device.type == "cuda"
        if not self._buffers or self._buffers[0].shape != token_B.shape:
            self._buffers = [torch.empty_like(token_B, device="cpu", pin_memory=on_gpu) for _ in range(2)]
        buffer_B = self._buffers.pop(0)
        self._buffers.append(buffer_B)
        buffer_B.copy_(token_B, non_blocking=True)
        event = None
        if on_gpu:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))

        def read() -> list[int]:
            if event is not None:
                event.synchronize()
            tokens: list[int] = buffer_B.tolist()
            return tokens

        return read
