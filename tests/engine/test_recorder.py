"""The recorder of CUDA graphs: its pool, its device and its stream, on stand-ins for those of torch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from kvbench.engine import graph

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


class Pools:
    """A stand-in for torch's memory pools of graphs, its current device and stream, with their errors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.users: dict[str, int] = {}
        self.device, self.stream = FIRST, "earlier stream"
        self.recorded_on: list[tuple[torch.device, str]] = []
        self.tensors: list[weakref.ref[torch.Tensor]] = []
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(self))
        monkeypatch.setattr(graph, "_streams", {})
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"stream of {device}")
        monkeypatch.setattr(torch.cuda, "device", self.current_device)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.stream)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "stream", stream))
        monkeypatch.setattr(torch.cuda, "graph", self.graph)

    @contextmanager
    def current_device(self, device: torch.device) -> Iterator[None]:
        before, self.device = self.device, device
        try:
            yield
        finally:
            self.device = before

    @contextmanager
    def graph(self, graph: Graph, pool: str, stream: str) -> Iterator[None]:
        self.recorded_on.append((self.device, stream))
        if not any(tensor() is not None for tensor in self.tensors) and not self.users.get(pool):
            self.users.pop(pool, None)  # torch forgets an empty pool
        self.stream = "stream of the graph"
        if self.users.get(pool) == 0:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
        self.users[pool] = self.users.get(pool, 0) + 1
        graph.pool = pool
        yield  # after an error the stream stays set
        self.stream = "earlier stream"

    def result(self) -> torch.Tensor:
        tensor = torch.zeros(1)
        self.tensors.append(weakref.ref(tensor))
        return tensor


class Graph:
    def __init__(self, pools: Pools) -> None:
        self.pools = pools
        self.pool: str | None = None

    def replay(self) -> None: ...

    def __del__(self) -> None:
        if self.pool is not None:
            self.pools.users[self.pool] -= 1


def test_one_pool_serves_one_recording_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the result of the previous recording is still in use."""
    pools = Pools(monkeypatch)
    record = graph.CudaRecorder(SECOND)
    out, replay = record(pools.result)
    del replay
    for _ in range(3):
        gc.collect()
        out, replay = record(pools.result)
        del replay
    assert pools.users == {"pool": 1} and out.shape == (1,)


def test_a_recording_leaves_out_the_work_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """It becomes several graphs of one pool. They and the host's work are replayed in order."""
    pools, done = Pools(monkeypatch), []
    monkeypatch.setattr(Graph, "replay", lambda self: done.append("graph"))
    record = graph.CudaRecorder(SECOND)

    def work() -> torch.Tensor:
        assert pools.stream == "stream of the graph"
        record.leave_out(lambda: done.append("host"))
        assert pools.stream == "stream of the graph"
        record.leave_out(lambda: done.append("host again"))
        return pools.result()

    out, replay = record(work)
    assert done == [] and pools.users == {"pool": 3} and pools.stream == "earlier stream"
    for _ in range(2):
        replay()
    assert done == ["graph", "host", "graph", "host again", "graph"] * 2 and out.shape == (1,)


def test_a_recording_is_of_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the current one; nor on torch's stream for recordings, which is on the GPU that was used first."""
    pools = Pools(monkeypatch)
    for device in (FIRST, SECOND, FIRST):
        record = graph.CudaRecorder(device)

        def work(record: graph.CudaRecorder = record, device: torch.device = device) -> torch.Tensor:
            record.leave_out(lambda: None)
            assert pools.device == device
            return pools.result()

        record(work)
        assert pools.recorded_on == [(device, f"stream of {device}")] * 2
        assert pools.device == FIRST and pools.stream == "earlier stream"
        pools.recorded_on.clear()


def test_a_recording_that_fails_after_work_of_the_host_can_be_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = Pools(monkeypatch)
    record = graph.CudaRecorder(SECOND)

    def fails() -> torch.Tensor:
        record.leave_out(lambda: None)
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        record(fails)
    assert pools.stream == "earlier stream"
    _, replay = record(pools.result)
    replay()


def test_a_recording_that_fails_leaves_the_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = Pools(monkeypatch)

    def fails() -> torch.Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        graph.CudaRecorder(SECOND)(fails)
    assert pools.stream == "earlier stream"
