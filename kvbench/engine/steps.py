"""The recorded decode steps of a batch: inputs to the device, tokens to the host, and the start of a step ahead.

A recorded step chooses its tokens on the device. They come to the host by a copy into pinned memory, which is queued
after the step: the host waits for this copy alone.

If nothing but a stop can change the next step, it starts before the tokens of this one are known, so that the device
works while the host takes them. A row that turns out to have stopped, or to have failed, has done a step too many. Its
token is dropped. The rows of a batch do not depend on each other, so the tokens of the others count.

The cache counts a step on the host when its turn comes, not when it starts. As long as a step is under way, the batch
stays as it is: nothing is laid out again, rows that have stopped are not released, and no prompt joins.

Shape suffixes: B rows (one token each).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

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
    device = device_of(model)
    graphed = GraphedSteps(forward, cache, CudaRecorder(device), must=str(graph).lower() == "true")
    return Steps(caches, graphed, device)


class Steps:
    """Decode steps: a call adds the last token of each row to the cache, and returns the next one of each row.

    Args:
        graphed: runs the steps, as graphs where it can.

    Attributes:
        was_replayed: True if a graph ran the last step.
    """

    def __init__(self, caches: LayerCaches, graphed: GraphedSteps, device: torch.device) -> None:
        self._caches, self._graphed, self._device = caches, graphed, device
        self._outbox = Outbox(device)
        self._tokens: list[int] = []  # of the last step
        self._ahead: Read | None = None
        self.was_replayed = False

    @property
    def replayed(self) -> int:
        """Steps that a graph ran."""
        return self._graphed.replayed

    @property
    def under_way(self) -> bool:
        """True if the next step of the same rows has started."""
        return self._ahead is not None

    def __call__(self, rows: Sequence[Row], ahead: bool = True) -> list[int]:
        """Do a step of these rows, or wait for the one under way. The next one may be under way afterwards.

        Args:
            rows: while a step is under way, the same as before; those that have stopped get a token of no meaning.
            ahead: False to start no further step.
        """
        read = self._start(rows) if self._ahead is None else self._counted(rows, self._ahead)
        self._ahead = self._outbox.send(self._next_tokens()) if ahead and self._may_go_on(rows) else None
        self._tokens = read()
        return self._tokens

    def close(self) -> None:
        """Wait for the step under way, whose tokens nobody wants."""
        if self._ahead is not None:
            with suppress(RuntimeError):  # of the device: it would hide the error that ended the batch
                self._ahead()
            self._ahead = None

    def _may_go_on(self, rows: Sequence[Row]) -> bool:
        """Return True if a row's stop is all that the tokens of this step, which are not known yet, can change."""
        go_on = all(row.finish is None and len(row.ids) + 1 < row.max_new_tokens for row in rows)
        return go_on and self._graphed.can_go_on([row.id for row in rows])

    def _next_tokens(self) -> Tensor:
        token_B = self._graphed.go_on().token_B
        assert token_B is not None
        return token_B

    def _counted(self, rows: Sequence[Row], read: Read) -> Read:
        """Count the step under way on the host; its input is the tokens of the last one."""
        ids = [[max(0, token)] for token in self._tokens]  # the device looks up id 0 for a row that has failed
        self._graphed.count([row.id for row in rows], ids)
        for row in rows:
            row.seen += 1
        self.was_replayed = True
        return read

    def _start(self, rows: Sequence[Row]) -> Read:
        ids = [[row.ids[-1]] for row in rows]
        seen = [[row.seen] for row in rows]

        def inputs() -> tuple[Tensor, Tensor]:
            return torch.tensor(ids, device=self._device), torch.tensor(seen, device=self._device)

        attention = ContinuePass(self._caches, [row.id for row in rows], ids)
        out = self._graphed(inputs, attention)
        self.was_replayed = out.token_B is not None
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
            self._buffers = [torch.empty(len(token_B), dtype=token_B.dtype, pin_memory=on_gpu) for _ in range(2)]
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
