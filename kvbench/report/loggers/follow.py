"""The process of the loggers: it follows the run folders of a command, or goes once over those that are there.

    python -m kvbench.report.loggers.follow < order

The first line of stdin is an `Order`. The command holds the other end open until its runs have ended; the process
then writes what is missing and ends. If the command is killed, the same happens. Events for the command go to stdout,
one JSON object per line, and are dropped rather than waited for. Everything that is printed goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from kvbench.common.command import log_messages
from kvbench.common.loggers import Settings, TrackioSettings, WandbSettings, settings_of_loggers
from kvbench.common.text import one_line
from kvbench.report.loggers.follower import Follower
from kvbench.report.loggers.order import Channel, Order
from kvbench.report.loggers.sinks import Sink

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 120.0  # seconds between two looks
_SHARE = 0.1  # of the time that looking may take


def open_sinks(loggers: Mapping[str, Settings], files: Path) -> list[Sink]:
    """Return the sinks that can be opened; a warning says which cannot, and why."""
    sinks: list[Sink] = []
    for name, settings in loggers.items():
        try:
            if isinstance(settings, WandbSettings):
                from kvbench.report.loggers.wandb_sink import WandbSink

                sinks.append(WandbSink(settings, files))
            elif isinstance(settings, TrackioSettings):
                from kvbench.report.loggers.trackio_sink import TrackioSink

                sinks.append(TrackioSink(settings, files))
        except Exception as error:  # an import can raise anything
            log.warning("%s: %s", name, one_line(f"{type(error).__name__}: {error}"))
    return sinks


def main() -> int:
    """Execute the order on stdin. Returns 1 if something could not be logged."""
    channel = Channel(os.dup(1))
    os.dup2(2, 1)  # what libraries print must not reach the command
    log_messages()
    order = Order(**json.loads(sys.stdin.buffer.readline()))
    if order.live:
        _step_back()
    loggers = settings_of_loggers(order.loggers)
    with channel.working(f"import {', '.join(loggers)}"):
        sinks = open_sinks(loggers, Path(order.files))
    if not sinks:
        return 1
    follower = Follower(order, sinks, channel.working, channel.send)
    if order.live:
        _follow(follower, order.pause)
    follower.finish()
    for sink in sinks:
        channel.send(tell=sink.outcome())
    return int(follower.failures > 0 or len(sinks) < len(loggers))


def _step_back() -> None:
    """Let the computation go first, also when memory runs out."""
    os.nice(10)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _follow(follower: Follower, least: float) -> None:
    """Look again and again until the command ends, for at most a tenth of the time."""
    pause = min(1.0, least)
    while not _is_over(pause):
        begin = time.monotonic()
        follower.look()
        pause = min(max(least, (time.monotonic() - begin) / _SHARE), _LONGEST_PAUSE)


def _is_over(seconds: float) -> bool:
    """Wait; return True as soon as the command has closed its end of stdin."""
    ready, _, _ = select.select([0], [], [], seconds)
    return bool(ready) and not os.read(0, 1)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
