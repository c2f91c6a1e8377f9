"""Reading the files of a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_ANEW = "move the folder away to run anew"
_DELETE = "delete this file"
_REMEDY = {"scores": f"{_DELETE}, the run has scores of its own", "status": _DELETE, "plan": _DELETE}


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; raises ValueError naming the file when it holds anything else."""
    kind = "plan" if path.parent.name == "plans" else path.stem.partition("-")[0]
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); {_REMEDY.get(kind, _ANEW)}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object; {_REMEDY.get(kind, _ANEW)}")
    return value


def read_records(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """Read samples.jsonl: (records, bytes of the whole lines, bytes of a torn last line after them).

    Only the last line may be torn: without its newline, or not JSON. Anything else that is no record raises
    ValueError with file and line, so that nothing is dropped in silence.
    """
    data = path.read_bytes() if path.exists() else b""
    lines = data.split(b"\n")
    unfinished = lines.pop()  # what follows the last newline; empty when the file ends well
    records: list[dict[str, Any]] = []
    good = 0
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines) and not unfinished:
                break
            raise ValueError(f"{path}, line {number}: not valid JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get("id"), str):
            raise ValueError(f"{path}, line {number}: not a record with an id")
        records.append(record)
        good += len(line) + 1
    return records, good, len(data) - good
