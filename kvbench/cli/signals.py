"""SIGTERM, SIGUSR1 and SIGUSR2 as an exception, so that open runs are closed as `preempted` on the way out.

Slurm and other schedulers send them some time before they kill.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_UNWINDING = 10.0  # seconds during which further signals do not disturb the closing of runs


class Preempted(SystemExit):
    """Somebody wants this process to end. No `Exception`: nothing that handles errors may swallow it.

    Its exit code is the shell's for a process that a signal has ended.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signal = signal.Signals(signum).name

    def __str__(self) -> str:
        return f"ended by {self.signal}"


@contextmanager
def preemptible() -> Iterator[None]:
    """Within, the signals raise `Preempted` in the main thread; afterwards they do what they did before.

    A scheduler may send several in a row: for ten seconds after the first, further ones are passed over. In another
    thread than the main one, where Python cannot handle signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if first and now - first[-1] < _UNWINDING:
            return
        first.append(now)
        raise Preempted(signum)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
