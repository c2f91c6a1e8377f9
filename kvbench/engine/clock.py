"""The clock of the engine's timings, and the times of variants that share a prefill.

A GPU works through a queue. A stamp of its time is an event in that queue, so taking one waits for nothing; the seconds
between two stamps are computed when they are read, after the prompt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from kvbench.methods.context import LayerContext
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


class VariantTimes:
    """The seconds that the compression of each variant would have taken without the others.

    Args:
        seconds: per variant, the seconds so far.
    """

    def __init__(self, seconds: Sequence[float]) -> None:
        self._totals = [Total(of_variant) for of_variant in seconds]

    @property
    def seconds(self) -> list[float]:
        """The seconds of each variant. Reading them may wait for the device."""
        return [total.seconds for total in self._totals]

    @contextmanager
    def __call__(
        self, variants: Sequence[int], ctx: LayerContext, shares: Mapping[int, float] | None = None
    ) -> Iterator[None]:
        """Add the seconds of a block, and of the results that it reuses, to the times of variants.

        Args:
            shares: the share of each variant, where it is not all of the time.
        """
        ctx.watch.user = variants[0] if len(variants) == 1 else None
        begin = ctx.watch.begin()
        yield
        span = ctx.watch.since(begin)
        for index in variants:
            self._totals[index].add(span, 1.0 if shares is None else shares[index])
