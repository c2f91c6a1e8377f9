"""SIGTERM, SIGUSR1 and SIGUSR2 as an exception, so that open runs are closed as `preempted` on the way out.

Slurm and other schedulers send them some time before they kill.

An exception that a signal handler raises can get lost: raised inside a finalizer it is only printed, and a library's
bare `except:` turns it into something else. Inside an import it may end the process at once, because the C++ of a
library that imports takes no exceptions. So the signal is remembered, and an import is given time to end. A thread
sends it again every second until the exception is on its way, and an error that leaves the block after a signal becomes
`Preempted`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_AGAIN = 1.0  # seconds until a signal whose exception got lost is raised again
_IMPORT = 10.0  # seconds that an import may take to end after a signal


class Preempted(SystemExit):
    """The request of another process to end. No `Exception`, so that nothing that handles errors swallows it.

    Its exit code is the shell's for a process that a signal has ended.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signal = signal.Signals(signum).name

    def __str__(self) -> str:
        return f"ended by {self.signal}"


@contextmanager
def preemptible() -> Iterator[None]:
    """Raise `Preempted` in the main thread when one of the signals arrives; after the block they act as before.

    A scheduler may send several in a row: while the exception is on its way, further ones are ignored. In another
    thread than the main one, where Python cannot handle signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[int] = []
    arrived = 0.0
    reader, writer = os.pipe()

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal arrived
        if not first:
            first.append(signum)
            arrived = time.monotonic()
            os.write(writer, b"!")  # wakes the thread; no lock, which the interrupted code might hold
        waits = _is_importing(frame) and time.monotonic() < arrived + _IMPORT
        if not waits and not _is_handling_preempted():
            raise Preempted(first[0])

    over = threading.Event()
    thread = threading.Thread(target=_send_again, args=(reader, first, over), daemon=True, name="signals")
    hook = sys.unraisablehook
    before = {number: signal.getsignal(number) for number in SIGNALS}
    thread.start()
    try:
        sys.unraisablehook = _quiet(hook)
        for number in SIGNALS:
            signal.signal(number, handle)
        yield
    except Exception as error:
        if not first:
            raise
        raise Preempted(first[0]) from error  # a consequence of the signal, such as a module that is half imported
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        over.set()
        os.write(writer, b"!")
        thread.join()
        os.close(reader)
        os.close(writer)
        sys.unraisablehook = hook


def _send_again(reader: int, first: list[int], over: threading.Event) -> None:
    """Wait for the first signal; then send it to the main thread again and again until the block is over."""
    os.read(reader, 1)
    while not over.wait(_AGAIN):
        main = threading.main_thread().ident
        if first and main is not None:
            signal.pthread_kill(main, first[0])


def _is_handling_preempted() -> bool:
    """Return True if the interrupted code runs because of a `Preempted`: in an `except`, a `finally`, an `__exit__`."""
    error = sys.exception()
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, Preempted):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _is_importing(frame: FrameType | None) -> bool:
    """Return True if the interrupted code runs because of an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _quiet(hook: Any) -> Any:
    """Return a hook for exceptions that Python cannot raise, which does not print `Preempted`: it is raised again."""

    def call(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Preempted):
            hook(unraisable)

    return call
