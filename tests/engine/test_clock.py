"""The engine's clock on a device that works through a queue: nothing waits before the prompt is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kvbench
from kvbench.engine import clock, decode, feed, prefill
from kvbench.engine.choices import measured
from kvbench.engine.clock import EventStamp, Total
from kvbench.engine.variant import Generation
from kvbench.methods.context import LayerContext
from kvbench.methods.memo import Memo, Span, Stopwatch
from tests.helpers.tiny_engine import Tiny, generate, prompt, tiny_model

NAMES = [("ada_snapkv", 70), ("snapkv", 70), ("pyramidkv", 70), ("streaming_llm", 70), ("fullkv", None)]


class Queue:
    """A device that does a second of work between two events, and reaches none of them before `finish`."""

    def __init__(self) -> None:
        self.recorded = 0
        self.reached = 0

    def finish(self) -> None:
        self.reached = self.recorded

    def stamp(self, *_: object) -> EventStamp:
        self.recorded += 1
        return EventStamp(FakeEvent(self, self.recorded))


class FakeEvent:
    """An event that refuses to be waited for, and to be read, before the device has come to it."""

    def __init__(self, queue: Queue, second: int) -> None:
        self.queue, self.second = queue, second

    def synchronize(self) -> None:
        assert self.second <= self.queue.reached, "the host waited for the device in the middle of a prompt"

    def elapsed_time(self, end_event: Any) -> float:
        assert self.second <= end_event.second <= self.queue.reached
        return 1000.0 * (end_event.second - self.second)


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_model()


def test_a_stamp_of_a_gpu_is_an_event_on_its_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event is recorded on the stream of the layer's device, and waited for when seconds are read."""
    calls: list[object] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            calls.append(stream)

        def synchronize(self) -> None:
            calls.append("waited")

        def elapsed_time(self, end_event: Event) -> float:
            return 2500.0

    monkeypatch.setattr(clock.torch.cuda, "Event", Event)
    monkeypatch.setattr(clock.torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(clock.torch.cuda, "synchronize", lambda *_: pytest.fail("waited for the whole device"))
    begin, end = (clock.stamp(torch.device("cuda", 1)) for _ in range(2))
    assert calls == ["stream of cuda:1"] * 2
    assert end - begin == 2.5
    assert calls[2:] == ["waited"] * 2
    assert isinstance(clock.stamp(torch.device("cpu")), float)


def test_shared_results_count_as_before_when_they_are_read_later(queue: Queue) -> None:
    """The sums of a queue, read at its end, are those of a clock that was read at once."""
    late, early = work(queue.stamp), work(ticks())
    queue.finish()
    assert [span.seconds for span in late.reused] == [span.seconds for span in early.reused]
    first, second = (Timed(Total(seconds)) for seconds in (0.0, 10.0))
    ctx = SimpleNamespace(watch=Stopwatch(queue.stamp))
    with measured([first, second], ctx, {first: 1.0, second: 0.25}):  # type: ignore[arg-type, list-item, dict-item]
        ctx.watch.reused.append(Span(3.0, 7.0))
    queue.finish()
    for _ in range(2):  # reading twice counts nothing twice
        assert (first.time.seconds, second.time.seconds) == (5.0, 10 + 5 / 4)


@dataclass(eq=False)
class Timed:
    """The part of a variant's choice that `measured` needs."""

    time: Total


def ticks() -> Callable[..., float]:
    seconds = count()
    return lambda *_: float(next(seconds))


def work(time: Callable[[], float] | Callable[[], EventStamp]) -> Stopwatch:
    """Return the watch of results that use each other, some of them twice."""
    watch = Stopwatch(time)
    memo = Memo(watch)
    for watch.user in ("a", "b", "b"):
        memo("outer", lambda: memo("inner", lambda: 1))
        memo("other", lambda: memo("inner", lambda: 1))
    return watch


def test_a_total_takes_further_spans_after_it_was_read() -> None:
    total = Total(1.0)
    total.add(Span(1.0, 2.0))
    assert total.seconds == 2.0
    total.add(Span(1.0, 5.0), 0.5)
    assert total.seconds == total.seconds == 4.0


@pytest.fixture
def queued(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    """Let the engine take its stamps from the queue, and finish the queue where the engine waits for the device."""
    real = clock.now

    def now(device: torch.device) -> float:
        queue.finish()
        return real(device)

    monkeypatch.setattr(prefill, "stamp", queue.stamp)
    monkeypatch.setattr(feed, "stamp", queue.stamp)
    for module in (prefill, decode):
        monkeypatch.setattr(module, "now", now)
    yield queue


def asked() -> list[kvbench.Variant]:
    return [kvbench.Variant(kvbench.load_method(name), budget) for name, budget in NAMES]


def test_a_prompt_waits_for_no_stamp(tiny: Tiny, queued: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stamp of a prompt is read after the engine has waited for the device at the prompt's end."""
    out = generate(tiny, [prompt(290)], asked())[0]
    layers = tiny[0].config.num_hidden_layers
    assert queued.recorded > 6 * layers
    monkeypatch.setattr(prefill, "stamp", ticks())
    read_at_once = generate(tiny, [prompt(290)], asked())[0]
    for late, early in zip(timings(out), timings(read_at_once), strict=True):
        assert late.compress_s == pytest.approx(early.compress_s, abs=0.5), "apart from the layout, which is real time"
        assert late.compress_s > 2 * layers


def timings(out: list[Generation]) -> list[kvbench.engine.variant.Timings]:
    return [row.timings for row in out]


def test_waiting_variants_and_fed_prompts_wait_for_no_stamp_in_a_layer(tiny: Tiny, queued: Queue) -> None:
    waiting = [kvbench.Variant(kvbench.load_method(name), 70) for name in ("prefixkv", "snapkv")]
    for row in timings(generate(tiny, [prompt(290)], waiting)[0]):
        assert row.compress_s > 0


def test_the_context_of_a_layer_reads_no_clock(queue: Queue) -> None:
    k = torch.randn(2, 9, 8)
    ctx = LayerContext(torch.randn(4, 9, 8), k, k, clock=queue.stamp)
    for _ in range(2):
        ctx.column_sums()
    queue.finish()
    assert ctx.reused_s == 1.0
