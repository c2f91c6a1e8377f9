"""The folder of a group's results: setting.json, cells.jsonl with a line per measured cell, tables and a figure.

Each cell is measured once. The folder's name has a hash of everything the numbers depend on, and a cell's id has one of
its method, dials, budget and point.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from kvbench.common import clock
from kvbench.common.files import write_atomic
from kvbench.common.line_file import LineFile
from kvbench.profile.record import CellRecord, is_measured
from kvbench.store import locks
from kvbench.store.files import read_lines
from kvbench.store.identity import identity_hash, plain
from kvbench.store.validate import check

SCHEMA = 1


def folder_of(outputs: str | Path, setting: Mapping[str, Any]) -> Path:
    """Return the folder for the cells of a setting, whether or not it exists."""
    model = setting["model"]["name"].rpartition("/")[2]
    name = f"{model}-{setting['device']['type']}-{identity_hash(setting)[:8]}"
    return Path(outputs).absolute() / "profile" / name


def _as_cell(value: object) -> CellRecord:
    """Return a value of the file as the record of a cell. Raises ValueError if it is none."""
    check(value, CellRecord)
    record = cast(CellRecord, value)
    if record["status"] == "ok" and not is_measured(record):
        raise ValueError('numbers are missing, although the status is "ok"')
    return record


class Results:
    """A folder of results that this process alone writes. `Results.open` creates it.

    Attributes:
        records: the latest record of every cell on file, by id.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / "cells.jsonl"
        lines, end, torn = read_lines(file, _as_cell)
        self.records: dict[str, CellRecord] = {record["id"]: record for record in lines}
        self._lines = LineFile(file, end, torn)

    @classmethod
    @contextmanager
    def open(cls, folder: Path, setting: Mapping[str, Any]) -> Iterator[Results]:
        """Create the folder, or continue in it.

        Raises:
            ValueError: the folder cannot be written, another process is writing it, or its file is damaged.
        """
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
            results.close()
            lock.release()

    def close(self) -> None:
        """Close the file of the cells."""
        self._lines.close()

    def needs(self, name: str, retry_oom: bool) -> bool:
        """Return True if the cell of this id must be measured."""
        record = self.records.get(name)
        return record is None or (retry_oom and record["status"] == "oom")

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a cell's record; it is on disk when this returns. Raises OSError naming the file."""
        content = plain({**record, "time": clock.now()}, record["id"])
        self._lines.append(json.dumps(content).encode() + b"\n")
        self.records[content["id"]] = cast(CellRecord, content)
