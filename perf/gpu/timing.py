"""Time of a call on the device, without the host: a CUDA graph of many calls, replayed between two events.

The calls of a graph go through several sets of data in turn, together larger than the L2 cache, so that each finds its
own in memory, as a layer of a model does. On a CPU the calls are timed once by the clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Work = Callable[[int], object]
_CALLS, _MOST_ROUNDS = 64, 8  # of a graph: enough that its launch counts for nothing
_MOST_SECONDS = 0.02  # of a graph: slow work needs no repetition inside it
_LEAST_REPLAYS, _MOST_REPLAYS = 5, 60


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median over replays, the 10th and the 90th percentile."""

    median: float
    low: float
    high: float
    replays: int
    calls: int  # of each replay

    def micro(self) -> dict[str, float]:
        return {"us": 1e6 * self.median, "us_low": 1e6 * self.low, "us_high": 1e6 * self.high}


def sets_needed(nbytes: int, device: torch.device, most: int = 384) -> int:
    """Return how many sets of `nbytes` to rotate: at least 4, and three times the L2 cache together."""
    if device.type != "cuda":
        return 2
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    return max(4, min(most, -(-3 * l2 // max(1, nbytes))))


def rounds_of(sets: int) -> int:
    """Return how often a graph goes through all sets, at most."""
    return max(1, min(_MOST_ROUNDS, _CALLS // sets))


def per_call(
    work: Work,
    sets: int,
    device: torch.device,
    before: Callable[[], object] | None = None,
    seconds: float = 0.04,
    rounds: int | None = None,
) -> Timing:
    """Time `work(i)`, i going through the sets.

    Args:
        work: nothing in it may wait for the device or depend on the host.
        before: done once at the start of each replay, timed with it: sets back what `work` changes.
        seconds: about how long to measure.
        rounds: how often a replay goes through all sets; if not given, more for short work.
    """
    if device.type != "cuda":
        return _by_clock(work, sets, before)
    each = _warmed_up(work, sets, before)
    times = rounds or max(1, min(rounds_of(sets), int(_MOST_SECONDS / each)))
    graph, calls = _captured(work, sets, times, before), sets * times
    graph.replay()
    first = _replays(graph, 1)[0]
    took = _replays(graph, max(_LEAST_REPLAYS, min(_MOST_REPLAYS, int(seconds / first))))
    graph.reset()
    return _timing(took, calls)


def _warmed_up(work: Work, sets: int, before: Callable[[], object] | None) -> float:
    """Run the work twice on a stream of its own, which compiles it; return the seconds of the second time."""
    side = torch.cuda.Stream()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            if before is not None:
                before()
            begin.record()
            for index in range(sets):
                work(index)
            end.record()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    return max(1e-6, begin.elapsed_time(end) / 1e3)


def _captured(work: Work, sets: int, rounds: int, before: Callable[[], object] | None) -> torch.cuda.CUDAGraph:
    """Record a graph of `rounds` times all sets."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            if before is not None:
                before()
            for _ in range(rounds):
                for index in range(sets):
                    work(index)
    finally:
        torch.cuda.set_stream(stream)  # a capture that fails leaves its own stream current
    torch.cuda.synchronize()
    return graph


def _replays(graph: torch.cuda.CUDAGraph, number: int) -> list[float]:
    """Return the seconds of each of some replays."""
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(number)]
    for begin, end in pairs:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]


def _by_clock(work: Work, sets: int, before: Callable[[], object] | None) -> Timing:
    if before is not None:
        before()
    begun = time.perf_counter()
    for index in range(sets):
        work(index)
    return _timing([time.perf_counter() - begun], sets)


def _timing(took: list[float], calls: int) -> Timing:
    each = sorted(seconds / calls for seconds in took)
    last = len(each) - 1
    return Timing(statistics.median(each), each[last // 10], each[last - last // 10], len(each), calls)
