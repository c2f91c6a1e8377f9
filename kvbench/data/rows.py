"""The rows of a LongBench file: read, and checked against the schema of eight fields (arXiv 2308.14508).

`_id` may repeat: only its type is checked. Code that needs a unique name for a row takes its number in the file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kvbench.common.kinds import is_integer
from kvbench.data.sources import LONGBENCH_ROWS
from kvbench.data.text import is_whole_text, parse_json, read_lines

_AGAIN = "fetch the file again: kvbench data longbench --force"
_CLASSES = ("trec", "lsht")  # scored against all_classes
_KINDS = {
    "input": "a text",
    "context": "a text that is not empty",
    "answers": "a list of texts",
    "length": "a whole number",
    "dataset": "a text",
    "language": "a text",
    "all_classes": "a list of texts, or null",
    "_id": "a text that is not empty",
}


def read(path: Path, dataset: str) -> tuple[list[dict[str, Any]], str]:
    """Return all rows in file order, and the checksum of the file. Raises ValueError with file, line and remedy."""
    try:
        lines, data = read_lines(path)
    except ValueError as error:
        raise ValueError(f"{error}; {_AGAIN}") from None
    if not lines:
        raise ValueError(f"{path}: the file is empty; {_AGAIN}")
    complete = LONGBENCH_ROWS.get(dataset, len(lines))
    if len(lines) > complete:
        raise ValueError(f"{path}: {len(lines)} rows, but {dataset} has {complete}; {_AGAIN}")
    rows = [_row(path, number, line, dataset) for number, line in enumerate(lines, start=1)]
    return rows, hashlib.sha256(data).hexdigest()


def _row(path: Path, number: int, line: str, dataset: str) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        row = parse_json(line, where)
    except ValueError as error:
        raise ValueError(f"{error}; {_AGAIN}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: not a JSON object; {_AGAIN}")
    for field, kind in _KINDS.items():
        if field not in row:
            raise ValueError(f"{where}: no field {field!r}; upstream's rows have {', '.join(_KINDS)}")
        if not _fits(field, row[field]):
            raise ValueError(f"{where}: {field!r} must be {kind}, and is {_short(row[field])}; {_AGAIN}")
    if "\\ud" in line.lower() and not is_whole_text(row):
        raise ValueError(f"{where}: holds half of a character, which no tokenizer can read; {_AGAIN}")
    plain = dataset.removesuffix("_e")
    if row["dataset"] not in (dataset, plain):
        raise ValueError(f"{where}: a row of {_short(row['dataset'])} in the file of {dataset}; {_AGAIN}")
    if plain in _CLASSES and not row["all_classes"]:
        raise ValueError(f"{where}: {plain} is scored with 'all_classes', which is empty here; {_AGAIN}")
    return row


def _fits(field: str, value: Any) -> bool:
    if field in ("context", "_id"):
        return isinstance(value, str) and bool(value.strip())
    if field in ("input", "dataset", "language"):
        return isinstance(value, str)
    if field == "length":
        return is_integer(value)
    if field == "all_classes" and value is None:
        return True
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
