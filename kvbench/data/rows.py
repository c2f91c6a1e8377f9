"""The rows of a LongBench file: read, and checked against the schema of eight fields (arXiv 2308.14508).

`_id` may repeat: only its kind is checked. Who needs a unique name for a row takes its number in the file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kvbench.data.sources import LONGBENCH_ROWS

_ANEW = "get the file anew: python -m kvbench.data longbench --force"
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
    """All rows in file order, and the checksum of the file. Raises ValueError with file, line and remedy."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        lines = data.decode("utf-8").split("\n")  # not splitlines: texts hold other line ends
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8; {_ANEW}") from None
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ValueError(f"{path}: the file is empty; {_ANEW}")
    rows = [_row(path, number, line, dataset) for number, line in enumerate(lines, start=1)]
    complete = LONGBENCH_ROWS.get(dataset, len(rows))
    if len(rows) > complete:
        raise ValueError(f"{path}: {len(rows)} rows, but {dataset} has {complete}; {_ANEW}")
    return rows, hashlib.sha256(data).hexdigest()


def _row(path: Path, number: int, line: str, dataset: str) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: cut off or not JSON ({error}); {_ANEW}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: not a JSON object; {_ANEW}")
    for field, kind in _KINDS.items():
        if field not in row:
            raise ValueError(f"{where}: no field {field!r}; upstream's rows have {', '.join(_KINDS)}")
        if not _fits(field, row[field]):
            raise ValueError(f"{where}: {field!r} must be {kind}, and is {_short(row[field])}; {_ANEW}")
    if "\\ud" in line.lower() and _broken(row):
        raise ValueError(f"{where}: holds half of a character, which no tokenizer can read; {_ANEW}")
    plain = dataset.removesuffix("_e")
    if row["dataset"] not in (dataset, plain):
        raise ValueError(f"{where}: a row of {_short(row['dataset'])} in the file of {dataset}; {_ANEW}")
    if plain in _CLASSES and not row["all_classes"]:
        raise ValueError(f"{where}: {plain} is scored with 'all_classes', which is empty here; {_ANEW}")
    return row


def _broken(row: dict[str, Any]) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate
        return True
    return False


def _fits(field: str, value: Any) -> bool:
    if field in ("context", "_id"):
        return isinstance(value, str) and bool(value.strip())
    if field in ("input", "dataset", "language"):
        return isinstance(value, str)
    if field == "length":
        return isinstance(value, int) and not isinstance(value, bool)
    if field == "all_classes" and value is None:
        return True
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
