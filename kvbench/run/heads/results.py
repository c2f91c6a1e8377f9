"""The folder of a probe's results: setting.json, samples.jsonl with a line per prompt, and the table of head scores.

Each prompt is computed once. The folder's name has a hash of everything that the scores depend on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, cast

from kvbench.common import clock
from kvbench.common.files import write_atomic
from kvbench.common.line_file import LineFile
from kvbench.methods.files import DialFile
from kvbench.store import locks
from kvbench.store.files import read_lines
from kvbench.store.identity import identity_hash, plain
from kvbench.store.validate import check

_DIGITS = 5  # of a score in the table


class ProbeRecord(TypedDict):
    """One prompt: how much of the answer the model gave, and the scores of its heads, layer by layer.

    `heads` is empty if the prompt does not count.
    """

    id: str
    score: float
    prediction: str
    heads: list[list[float]]


def _as_record(value: object) -> ProbeRecord:
    """Return a value of the file as a record. Raises ValueError if it is none."""
    check(value, ProbeRecord)
    return cast(ProbeRecord, value)


def folder_of(outputs: str | Path, setting: Mapping[str, Any]) -> Path:
    """Return the folder for a setting, whether or not it exists."""
    name = f"{setting['model']['name'].rpartition('/')[2]}-{setting['probe']['probe']}-{identity_hash(setting)[:8]}"
    return Path(outputs).absolute() / "heads" / name


class Results:
    """A folder of results that this process alone writes. `Results.open` creates it.

    Attributes:
        folder: where it is.
        records: the records on file, by the id of their prompt.
    """

    def __init__(self, folder: Path, setting: Mapping[str, Any]) -> None:
        file = folder / "samples.jsonl"
        lines, end, torn = read_lines(file, _as_record)
        self.folder, self._setting = folder, setting
        self.records: dict[str, ProbeRecord] = {record["id"]: record for record in lines}
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
                write_atomic(folder / "setting.json", json.dumps(setting, indent=2) + "\n")
                results = cls(folder, setting)
        except OSError as error:
            raise ValueError(f"paths.outputs: cannot write {folder} ({error.strerror or error})") from None
        try:
            yield results
        finally:
            results._lines.close()
            lock.release()

    def append(self, record: ProbeRecord) -> None:
        """Write a prompt's record; it is on disk when this returns. Raises OSError naming the file."""
        self._lines.append(json.dumps(plain(dict(record), record["id"])).encode() + b"\n")
        self.records[record["id"]] = record

    def write_table(self, name: str, counted: Sequence[ProbeRecord]) -> Path:
        """Write `name`.json in HeadKV's format, and name.about.json with its checksum and where it is from.

        Returns the path of the table.
        """
        layers = [layer for record in counted[:1] for layer in record["heads"]]
        table = {
            f"{layer}-{head}": [_rounded(record["heads"][layer][head]) for record in counted]
            for layer, row in enumerate(layers)
            for head in range(len(row))
        }
        text = json.dumps(table, separators=(",", ":")) + "\n"
        about = {
            "sha256": DialFile(text, name).digest.removeprefix("sha256:"),
            "prompts": len(self.records),
            "counted": [record["id"] for record in counted],
            **self._setting,
            "time": clock.now(),
        }
        path = self.folder / f"{name}.json"
        write_atomic(path, text)
        write_atomic(self.folder / f"{name}.about.json", json.dumps(about, indent=2) + "\n")
        return path


def _rounded(score: float) -> float | int:
    """Return a score with few digits; zeros, which most are, as short as JSON has them."""
    return float(f"{score:.{_DIGITS}g}") or 0
