"""Child processes of the suite: each in a process group of its own, ended with all that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from suite_steps import ROOT


class Processes:
    """The processes that run now. After `stop`, `stopped` is True."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[Any]] = set()
        self.stopped = False

    def run(self, command: Sequence[str], env: Mapping[str, str], limit: float) -> tuple[int | None, str]:
        """Run a command for at most `limit` seconds; returns exit status (None: it took too long) and output."""
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            self._running.add(process)
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
                _kill(process)
            self._running.discard(process)
            output.seek(0)
            return code, output.read()

    def stop(self) -> None:
        """End all."""
        self.stopped = True
        for process in list(self._running):
            _kill(process)


def _kill(process: subprocess.Popen[Any]) -> None:
    """End a step and all processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
