"""The command's side of the loggers: start their process, and never wait for one that does not move.

Nothing in here may fail a run: whatever goes wrong is a line on the console, and `kvbench log` repairs it later.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from kvbench.common.loggers import LOGGERS
from kvbench.common.text import one_line
from kvbench.report.loggers.order import Order

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds without a sign of progress after which the command does not wait any longer
_LONGEST = 60.0  # seconds that it waits at most
_MODULE = "kvbench.report.loggers.follow"


def missing_package(name: str) -> str | None:
    """Return the line about a logger whose package is not installed; None if it is."""
    if importlib.util.find_spec(name) is not None:
        return None
    return f"logger={name}: {name} is not installed; pip install 'kvbench[{name}]'"


@contextlib.contextmanager
def following(outputs: Path, folders: Sequence[Path], loggers: Mapping[str, Any]) -> Iterator[None]:
    """Log the runs in `folders` while the block computes them, and what is missing of them after it.

    Args:
        outputs: the outputs folder.
        loggers: the checked node `logger`; nothing happens if it is empty.
    """
    there = {name: loggers[name] for name in LOGGERS if name in loggers and _is_installed(name, outputs)}
    if not there or not folders:
        yield
        return
    process = _started(Order(str(outputs), str(outputs), [str(folder) for folder in folders], there, live=True))
    try:
        yield
    except Exception:
        _close(process, there, outputs)
        raise
    except BaseException:  # asked to end at once
        _close(process, there, outputs, patience=0)
        raise
    else:
        _close(process, there, outputs)


def _is_installed(name: str, outputs: Path) -> bool:
    line = missing_package(name)
    if line is not None:
        log.warning("%s, then: kvbench log %s logger=%s", line, outputs, name)
    return line is None


def _started(order: Order) -> Process | None:
    try:
        return Process(order)
    except (OSError, ValueError) as error:  # no memory for a process, no place for its log
        log.warning("logger: cannot be started (%s)", one_line(str(error)))
        return None


def _close(process: Process | None, loggers: Mapping[str, Any], outputs: Path, patience: float | None = None) -> None:
    if process is None:
        return
    is_over = False
    with contextlib.suppress(OSError):
        process.hang_up()
        is_over = process.wait(PATIENCE if patience is None else patience)
    for line in process.lines():
        log.info("%s", line)
    names = ",".join(loggers)
    chosen = names if len(loggers) == 1 else f"[{names}]"
    if not is_over:
        log.warning(
            "logger: process %d is not finished yet and goes on by itself; if it is killed: kvbench log %s logger=%s",
            process.pid,
            outputs,
            chosen,
        )
    elif process.status:
        log.warning("logger: not everything was logged; later: kvbench log %s logger=%s", outputs, chosen)


class Process:
    """The process of the loggers, with its events.

    It has a session of its own, so that neither Ctrl-C nor the end of a terminal reaches it.
    """

    def __init__(self, order: Order, quiet: bool = True) -> None:
        """Start it.

        Args:
            quiet: keep what it prints for `lines`, and keep Ctrl-C from it.

        Raises:
            OSError: it cannot be started.
        """
        root = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._errors: IO[bytes] | None = tempfile.TemporaryFile() if quiet else None  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            start_new_session=quiet,
        )
        self.pid = self._process.pid
        self.events: list[dict[str, Any]] = []
        self._moved, self._is_working = time.monotonic(), True  # Python starts
        self._reader = threading.Thread(target=self._read, daemon=True, name="loggers")
        self._reader.start()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died already: its status tells
            self._process.stdin.write(order.line().encode())
            self._process.stdin.flush()

    @property
    def status(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def hang_up(self) -> None:
        """Tell it that the runs have ended."""
        assert self._process.stdin is not None
        if not self._is_working:  # it was waiting for news
            self._moved = time.monotonic()
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def wait(self, patience: float) -> bool:
        """Wait until it ends, as long as it moves. Return True if it has ended."""
        end = time.monotonic() + _LONGEST
        try:
            while self._process.poll() is None and time.monotonic() < min(end, self._moved + patience):
                time.sleep(0.05)
        except KeyboardInterrupt:  # the user does not want to wait; the runs are complete
            pass
        if self._process.poll() is None:
            return False
        self._reader.join(1.0)
        return True

    def lines(self) -> list[str]:
        """Return what it has printed so far, then where the entries are."""
        if self._errors is None:
            return self._told()
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        return [*filter(None, (one_line(line) for line in text.splitlines())), *self._told()]

    def told(self) -> list[str]:
        """Wait until it ends and return where the entries are."""
        self._process.wait()
        self._reader.join()
        return self._told()

    def _told(self) -> list[str]:
        return [str(event["tell"]) for event in list(self.events) if "tell" in event]

    def _read(self) -> None:
        """Collect events. An event's clock is that of this machine, so that old ones count as old."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            self.events.append(event)
            self._is_working = "begin" in event or ("end" not in event and self._is_working)
            self._moved = max(self._moved, float(event.get("clock", 0.0)))
