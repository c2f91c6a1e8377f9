"""Jobs whose results a logger shows while they are computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kvbench.report.loggers.live import following
from kvbench.run.jobs import Job


@contextmanager
def logged(jobs: Sequence[Job]) -> Iterator[None]:
    """Log the runs of jobs while the block computes them, with the loggers that their configuration chooses."""
    if not jobs:
        yield
        return
    first = jobs[0].cfg
    folders = list(dict.fromkeys(job.folder for job in jobs))
    with following(Path(first["paths"]["outputs"]).absolute(), folders, first.get("logger") or {}):
        yield
