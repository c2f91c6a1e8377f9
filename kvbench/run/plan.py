"""The plan of a command: which runs it asks for, written down before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kvbench import store
from kvbench.run.jobs import Job


def write_plans(jobs: Iterable[Job], command: str) -> None:
    """Write one plan per outputs folder. `command` is what the user typed.

    Raises:
        OSError: an outputs folder cannot be written.
    """
    folders: dict[str, list[tuple[Path, int | None]]] = {}
    for job in jobs:
        folders.setdefault(job.cfg["paths"]["outputs"], []).append((job.folder, job.cfg["limit"]))
    for outputs, runs in folders.items():
        store.write_plan(outputs, command, runs)
