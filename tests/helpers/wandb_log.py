"""The content of an offline run of W&B, read back from its log and its files, without a server."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER = 32768, 7  # bytes: of LevelDB's log format, and of W&B's own header


@dataclass
class LoggedRun:
    """A run as the log has it. `tables` and `images` are read from the files that the log names."""

    folder: Path
    id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)
    artifacts: dict[str, dict[str, bytes]] = field(default_factory=dict)
    exit_code: int | None = None


def read_logged(outputs: Path) -> dict[str, LoggedRun]:
    """Return the offline runs below an outputs folder by id. Two folders of one run are an error."""
    runs: dict[str, LoggedRun] = {}
    for folder in sorted((outputs / "wandb").glob("offline-run-*")):
        run = _read(folder)
        assert run.id not in runs, f"{run.id} is there twice"
        runs[run.id] = run
    return runs


def _read(folder: Path) -> LoggedRun:
    run = LoggedRun(folder)
    (log,) = folder.glob("run-*.wandb")
    for record in _records(log.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run" and not run.id:
            run.id, run.name, run.project = record.run.run_id, record.run.display_name, record.run.project
            run.group, run.job_type, run.tags = record.run.run_group, record.run.job_type, list(record.run.tags)
            run.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                _put(row, list(item.nested_key) or [item.key], json.loads(item.value_json))
            _media(run, row)
            run.history.append(row)
        elif kind == "summary":
            for item in record.summary.update:
                run.summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        elif kind == "artifact" and record.artifact.type == "predictions":
            files = {entry.path: Path(entry.local_path).read_bytes() for entry in record.artifact.manifest.contents}
            run.artifacts[record.artifact.name] = files
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _put(row: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        row = row.setdefault(key, {})
    row[path[-1]] = value


def _media(run: LoggedRun, row: dict[str, Any]) -> None:
    """Read the files that a row names, and check their hashes against those that it names."""
    for key, value in row.items():
        if isinstance(value, dict) and str(value.get("_type", "")).endswith("-file"):
            content = (run.folder / "files" / value["path"]).read_bytes()
            assert len(content) == value["size"]
            if value["_type"] == "table-file":
                run.tables[key] = json.loads(content)
            else:
                run.images[key] = content


def _records(data: bytes) -> Iterator[Any]:
    """Yield the records of a log: LevelDB's framing of protobuf messages. A torn tail ends it."""
    assert data[:4] == b":W&B"
    offset, parts = _HEADER, b""
    while offset + 7 <= len(data):
        left = _BLOCK - offset % _BLOCK
        if left < 7:
            offset += left
            continue
        _, size, kind = struct.unpack("<IHB", data[offset : offset + 7])
        if kind == 0:
            offset += left
            continue
        chunk = data[offset + 7 : offset + 7 + size]
        if len(chunk) < size:
            return
        offset += 7 + size
        parts = chunk if kind in (1, 2) else parts + chunk
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
