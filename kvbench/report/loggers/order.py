"""The talk between a command and the process of its loggers: an order, and events."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

PAUSE = 5.0  # seconds between two looks


@dataclass(frozen=True)
class Order:
    """The task of a process of the loggers.

    Attributes:
        outputs: the outputs folder, which has the plans.
        files: the folder for the files of the loggers.
        folders: the run folders to follow, there or not; of an order that is not live, those to write.
        loggers: the node `logger` of the configuration.
        live: follow until stdin ends; else write once.
        pause: seconds between two looks.
    """

    outputs: str
    files: str
    folders: list[str]
    loggers: dict[str, Any]
    live: bool
    pause: float = PAUSE

    def line(self) -> str:
        """Return the order as the line that the process reads."""
        return json.dumps(asdict(self)) + "\n"


class Channel:
    """Events for the command: what begins and ends, and what to tell the user. Nothing waits for the command."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_blocking(fd, False)

    def send(self, **event: object) -> None:
        """Send an event, unless nobody reads it."""
        with contextlib.suppress(OSError):
            os.write(self._fd, (json.dumps(event) + "\n").encode())

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Tell when a piece of work begins and ends. The clock is that of the whole machine."""
        self.send(begin=what, clock=time.monotonic())
        try:
            yield
        finally:
            self.send(end=what, clock=time.monotonic())
