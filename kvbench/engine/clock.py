"""The clock of the engine's timings.

A GPU works through a queue. A stamp of its time is an event in that queue, so taking one waits for nothing; the seconds
between two stamps are computed when they are read, after the prompt.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch

from kvbench.methods.memo import Span, Stamp


def now(device: torch.device) -> float:
    """Return the wall clock in seconds, after everything queued on the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Event(Protocol):
    """An event in the queue of a device, as `torch.cuda.Event`."""

    def synchronize(self) -> None:
        """Wait until the device has come to the event."""
        ...

    def elapsed_time(self, end_event: Any) -> float:
        """Return the milliseconds from this event to another. The device must have come to both."""
        ...


class EventStamp:
    """The time at which a device comes to an event. A difference is in seconds, and waits for both events."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def __sub__(self, earlier: EventStamp) -> float:
        """Return the seconds since an earlier stamp of the same device."""
        earlier._event.synchronize()  # CUDA computes no time between events that are not over
        self._event.synchronize()
        milliseconds: float = earlier._event.elapsed_time(self._event)
        return milliseconds / 1000


def stamp(device: torch.device) -> Stamp:
    """Return the time at which the device will have finished what is queued now, without waiting for it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return EventStamp(event)


class Total:
    """Seconds that are added up when they are read, which may wait for the device.

    Args:
        seconds: where the sum begins.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._unread: list[tuple[Span, float]] = []

    def add(self, span: Span, share: float = 1.0) -> None:
        """Add a share of the seconds of a span."""
        self._unread.append((span, share))

    @property
    def seconds(self) -> float:
        """The sum so far."""
        self._seconds += sum(span.seconds * share for span, share in self._unread)
        self._unread.clear()
        return self._seconds
