"""Decode steps as CUDA graphs: a step of the same rows over the same buffers is recorded once and then replayed.

A model's decode step is hundreds of small kernels, and launching them from Python takes longer than running them. In a
graph they are one launch. Tensors hold what changes from step to step: the tokens, their positions, and the lengths
of the segments, which the kernels themselves count up. The greedy choice belongs to the graph too, and its last kernels
write the next step's tokens and positions: a replay can follow a replay without the host. When rows leave or join, or
the cache moves, the next steps are eager again. The graph is recorded again after a few steps of the same batch.

Some rows need the host in every step: those with a storage part or a look, and those of policies that say with a mask
what leaves. Their part of a layer is left out of the recording. A graph ends before it and another one follows, so the
rest of the step, and the other rows of the batch, stay recorded. A step in which the cache moves, or in which a policy
drops several tokens at once, is eager as a whole.

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.base import KVCache, Recordable
from kvbench.cache.host_work import Work
from kvbench.common.kinds import SWITCHES
from kvbench.engine.caches import ContinuePass
from kvbench.engine.greedy import best_tokens
from kvbench.engine.survey import survey

log = logging.getLogger(__name__)

_streams: dict[torch.device, torch.cuda.Stream] = {}  # for recordings; torch's own one is on the first device used
_STEADY = 3  # eager steps of the same batch before it is recorded, because rows often leave shortly after each other

Forward = Callable[[Tensor, Tensor, ContinuePass], Tensor]
Inputs = Callable[[], tuple[Tensor, Tensor]]
"""Returns the tokens [B, 1] of a step and their positions [B, 1], after uploading them to the device."""


class Out(NamedTuple):
    """The result of a step, on the device. The next step overwrites it.

    Attributes:
        token_B: the greedy token of each row, see `best_tokens`; None after an eager step.
    """

    logits_BV: Tensor
    token_B: Tensor | None


class Recorder(Protocol):
    """A recorder of work on a device."""

    def __call__(self, work: Callable[[], Out]) -> tuple[Out, Work]:
        """Record a function's work without running it. Return the result's tensors and a replay function."""
        ...

    def leave_out(self, work: Work) -> None:
        """Let the host do this work at this place in every replay; called while a function is being recorded."""
        ...


def recordable(model: PreTrainedModel, cache: KVCache, graph: str) -> Recordable | None:
    """Return the cache if decode steps over it are to be recorded, None if not.

    Args:
        graph: "auto" (if possible), "true" or "false".

    Raises:
        ValueError: "true" although it is impossible; the message names the reason.
    """
    choice = str(graph).lower()  # a configuration's true is True
    if choice not in SWITCHES:
        raise ValueError(f"engine.graph={graph}: must be one of {', '.join(SWITCHES)}")
    reason = obstacle(model, cache)
    if choice == "true" and reason is not None:
        raise ValueError(f"engine.graph=true: {reason}")
    return cache if choice != "false" and reason is None and isinstance(cache, Recordable) else None


def obstacle(model: PreTrainedModel, cache: KVCache) -> str | None:
    """Return why decode steps cannot be recorded; None if they can."""
    devices = {p.device for p in model.parameters()}
    if {d.type for d in devices} != {"cuda"}:
        return "CUDA graphs need a model on a GPU"
    if len(devices) > 1 or getattr(model, "hf_device_map", None) is not None:
        return "the model is spread over devices"
    if not isinstance(cache, Recordable):
        return "engine.cache=masked makes new tensors in every step; choose engine.cache=ragged"
    if cache.kernel not in ("cuda", "flash_attn"):
        return f"kernel={cache.kernel} needs the lengths on the host in every step; choose kernel=cuda or flash_attn"
    if survey(model).local:
        return "some layers look back a limited number of tokens, which the host counts in every step"
    return None


class CudaRecorder:
    """A recorder of work on a GPU, in one graph, or in several with the host's work between them.

    Graphs follow each other, so they can all use one pool of memory. Those of the last recording are held until the
    next one: a pool that no graph uses any more cannot be recorded into as long as some tensor of it lives, such as the
    last result (`use_count > 0 INTERNAL ASSERT FAILED`).

    Args:
        device: the GPU that does the work. It need not be torch's current device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device not in _streams:
            _streams[device] = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._last: list[torch.cuda.CUDAGraph] = []
        self._parts: list[Callable[[], object]] = []
        self._capture = ExitStack()

    def __call__(self, work: Callable[[], Out]) -> tuple[Out, Work]:
        """Record a function's work without running it. Return the result's tensors and a replay function."""
        self._graphs, self._parts = [], []
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            try:
                with ExitStack() as self._capture:
                    self._begin()
                    out = work()
            finally:
                torch.cuda.set_stream(stream)  # a recording that fails leaves its own stream set
        self._last, parts, self._parts = self._graphs, self._parts, []

        def replay() -> None:
            for part in parts:
                part()

        return out, replay

    def leave_out(self, work: Work) -> None:
        """Let the host do this work at this place in every replay: between two graphs."""
        self._capture.close()
        self._parts.append(work)
        self._begin()

    def _begin(self) -> None:
        graph = torch.cuda.CUDAGraph()
        self._capture.enter_context(torch.cuda.graph(graph, pool=self._pool, stream=_streams[self._device]))
        self._graphs.append(graph)
        self._parts.append(graph.replay)


@dataclass(frozen=True)
class _Recording:
    """A recorded step: its tensors for tokens and positions, its result, and the function that runs it.

    Attributes:
        alone: True if the host does no part of it.
    """

    ids_B1: Tensor
    position_B1: Tensor
    out: Out
    replay: Work
    alone: bool


class GraphedSteps:
    """Decode steps of one token per row, from a graph if there is one for these rows, else eager.

    Args:
        forward: runs a step eagerly.
        cache: the cache that the steps append to.
        record: records a step.
        must: raise an error for a step that cannot be recorded.

    Attributes:
        replayed: steps that a graph ran.
    """

    def __init__(self, forward: Forward, cache: Recordable, record: Recorder, must: bool = False) -> None:
        self._forward, self._cache, self._record, self._must = forward, cache, record, must
        self._key: tuple[object, ...] = ()
        self._steady = 0
        self._recording: _Recording | None = None
        self._holds_input = False  # the recording's input tensors hold the next step's tokens and positions
        self._works = True
        self._without_room = 0  # steps in a row; -1 once it is logged
        self.replayed = 0

    def __call__(self, inputs: Inputs, attention: ContinuePass) -> Out:
        """Return the result of one more token of each row.

        Args:
            inputs: called unless the device has the tokens already, because it chose them in the last step.
        """
        rows = attention.rows
        key = (*rows, self._cache.moves)
        if key != self._key:
            self._key, self._steady, self._recording, self._holds_input = key, 0, None, False
        self._steady += 1
        # without room the cache moves in this step, or a policy drops several tokens, which is work for the host
        has_room = self._cache.room(rows) >= 1
        self._log_host_work(has_room)
        if self._steady <= _STEADY or not self._works or not has_room:
            return Out(self._forward(*inputs(), attention), None)
        if self._recording is None:
            self._recording = self._recorded(inputs, attention)
            if self._recording is None:
                return Out(self._forward(*inputs(), attention), None)
        else:
            self._cache.advance(rows, attention.ids)
        if not self._holds_input:
            for held, new in zip((self._recording.ids_B1, self._recording.position_B1), inputs(), strict=True):
                held.copy_(new)
        return self._replay(self._recording)

    def chosen_on_host(self) -> None:
        """Note that the host chose the tokens after the last step; an eager step leaves that to it."""
        self._holds_input = False

    def can_go_on(self, rows: Sequence[int]) -> bool:
        """Return True if the step after the last one needs nothing of the host: it replays the same single graph."""
        recording = self._recording
        return self._holds_input and recording is not None and recording.alone and self._cache.room(rows) >= 1

    def go_on(self) -> Out:
        """Start that step. `count` follows once its tokens are known, before anything else changes the cache."""
        assert self._recording is not None and self._holds_input
        return self._replay(self._recording)

    def count(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """Count the step that `go_on` started on the host, by the ids of the tokens that it appends."""
        assert self._key == (*rows, self._cache.moves), "the batch changed although a step was under way"
        self._cache.advance(rows, ids)

    def _replay(self, recording: _Recording) -> Out:
        recording.replay()
        self._holds_input = True
        self.replayed += 1
        return recording.out

    def _log_host_work(self, has_room: bool) -> None:
        """Log once if step after step of a batch cannot be recorded."""
        if self._without_room < 0:
            return
        self._without_room = 0 if has_room else self._without_room + 1
        if self._without_room > 2 * _STEADY:
            self._without_room = -1
            log.warning(
                "decoding without CUDA graphs in this batch: in every step some row's policy drops several tokens, or "
                "a row outgrows its reserve; other batches keep their graphs"
            )

    def _recorded(self, inputs: Inputs, attention: ContinuePass) -> _Recording | None:
        """Record a step; return None if that fails. The cache counts its token; the replay then writes it."""
        ids_B1, position_B1 = (x.clone() for x in inputs())
        _write_next(ids_B1[:, 0], ids_B1.clone(), position_B1.clone())  # loads kernels, which no recording should do
        alone = True

        def leave_out(work: Work) -> None:
            nonlocal alone
            alone = False
            self._record.leave_out(work)

        def step() -> Out:
            logits_BV = self._forward(ids_B1, position_B1, attention)
            token_B = best_tokens(logits_BV)
            _write_next(token_B, ids_B1, position_B1)
            return Out(logits_BV, token_B)

        before = self._cache.counts()
        try:
            with self._cache.host_work.recorded_by(leave_out):
                out, replay = self._record(step)
        except RuntimeError as error:  # the model does what cannot be recorded, for example waits for the device
            if self._must:
                raise ValueError(f"engine.graph=true: {str(error).splitlines()[0]}") from error
            self._cache.reset_counts(before)
            self._works = False
            log.warning("decoding without CUDA graphs: %s", str(error).splitlines()[0])
            return None
        return _Recording(ids_B1, position_B1, out, replay, alone)


def _write_next(token_B: Tensor, ids_B1: Tensor, position_B1: Tensor) -> None:
    """Write the input of the next step, of whose rows these are the tokens, over that of this step."""
    torch.clamp(token_B[:, None], min=0, out=ids_B1)  # a row that fails has no token, but an id is looked up
    position_B1.add_(1)
