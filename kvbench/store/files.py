"""Reading and writing the files of a run folder so that a crash at any moment leaves them usable."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text`; a reader sees the old file or the new one, never a part of it.

    Raises OSError that names `path`, which then holds what it held before.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to be written in the block, that takes the place of `path` at its end; as `write_atomic`."""
    # not the process id alone: two hosts that share a folder may have the same one at work
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # of a full disk, Python does not say which file it was
            raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from None
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make new names in `folder` durable; a file system that cannot sync a folder is left alone."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


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
