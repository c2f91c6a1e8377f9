"""A clock for the engine that a test moves by hand, so that a busy machine changes no timing."""

from __future__ import annotations

import pytest

from kvbench.engine import choices, clock, decode


class StoppedClock:
    """Stands in for the module `time` in the engine. It moves only where a test adds to `seconds`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        for module in (choices, clock, decode):
            monkeypatch.setattr(module, "time", self)

    def perf_counter(self) -> float:
        return self.seconds
