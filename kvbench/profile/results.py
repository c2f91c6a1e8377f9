"""The folder of a group's results: setting.json, cells.jsonl with a line per measured cell, tables and a figure.

Each cell is measured once. The folder's name has a hash of everything the numbers depend on, and a cell's id has one of
its method, dials, budget and point.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

from kvbench.profile.record import CellRecord, is_measured
from kvbench.run.asset import RecordFolder
from kvbench.store.identity import identity_hash
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


def open_results(folder: Path, setting: Mapping[str, Any]) -> AbstractContextManager[RecordFolder[CellRecord]]:
    """Create the folder for the cells of a setting, or continue in it; see `RecordFolder.open`."""
    return RecordFolder.open(folder, {"schema": SCHEMA, **setting}, _as_cell, "cells.jsonl")


def needs(results: RecordFolder[CellRecord], name: str, retry_oom: bool) -> bool:
    """Return True if the cell of this id must be measured."""
    record = results.records.get(name)
    return record is None or (retry_oom and record["status"] == "oom")
