"""The folder of a group's results: setting.json, cells.jsonl with a line per measured cell, tables and figure.

What is measured is measured once: a cell is looked up by what it is, its folder by all that its numbers depend on.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvbench.common import clock
from kvbench.common.files import sync_folder, write_atomic
from kvbench.store import locks
from kvbench.store.files import read_lines
from kvbench.store.identity import identity_hash, plain

log = logging.getLogger(__name__)

SCHEMA = 1


def folder_of(outputs: str | Path, setting: Mapping[str, Any]) -> Path:
    """Where the cells of a setting are, whether or not anything is there yet."""
    model = setting["model"]["name"].rpartition("/")[2]
    name = f"{model}-{setting['device']['type']}-{identity_hash(setting)[:8]}"
    return Path(outputs).absolute() / "profile" / name


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """The latest record of every cell on file, by id. Raises ValueError for a damaged file."""
    found, _, _ = read_lines(folder / "cells.jsonl", _cell)
    return {record["id"]: record for record in found}


def _cell(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("id"), str):
        raise ValueError("not a record with an id")
    return value


class Results:
    """A folder open for writing, by this process alone; made by `Results.open`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "cells.jsonl"
        self.records = records(folder)
        _, end, torn = read_lines(self._file, _cell)
        self._fd = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if torn:
            log.warning("%s: dropped a torn last line of %d bytes", self._file, torn)
            os.ftruncate(self._fd, end)
        sync_folder(folder)

    @classmethod
    @contextmanager
    def open(cls, folder: Path, setting: Mapping[str, Any]) -> Iterator[Results]:
        """Make the folder, or continue in it. Raises ValueError where it cannot be written or another one writes it."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locks.opening(folder, None, wait=False, timeout=None) as lock:
                write_atomic(folder / "setting.json", json.dumps({"schema": SCHEMA, **setting}, indent=2) + "\n")
                results = cls(folder)
        except OSError as error:
            raise ValueError(f"paths.outputs: cannot write {folder} ({error.strerror or error})") from None
        try:
            yield results
        finally:
            os.close(results._fd)
            lock.release()

    def missing(self, name: str, retry_oom: bool) -> bool:
        """Whether a cell has to be measured."""
        record = self.records.get(name)
        return record is None or (retry_oom and record["status"] == "oom")

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a cell's record; it is on disk when this returns. Raises OSError naming the file."""
        made = plain({**record, "time": clock.now()}, record["id"])
        line = json.dumps(made).encode() + b"\n"
        try:
            written = os.write(self._fd, line)
            if written < len(line):  # the next start would drop it as torn, and so would this one's readers
                raise OSError(28, "no space left on the device")
            os.fsync(self._fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._file)) from None
        self.records[made["id"]] = made
