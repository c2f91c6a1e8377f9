"""The files that exports and reports wrote to a folder, so that the next one deletes what it does not write again.

A hidden file in the folder, `.written-<hash>`, lists them for each source: what was written from which runs. So
several stores may be exported to one folder. A file is deleted only if it is still as it was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

from kvbench.common.files import write_atomic
from kvbench.store.files import DELETE, read_json

_NAMES = ".written-{}"  # no .json: who looks for results in such files must not find it


class _List(TypedDict):
    """The content of a list: the path of each file below the folder, with its sha256."""

    files: dict[str, str]


def replace_earlier(out: Path, source: object, files: Iterable[Path]) -> int:
    """Delete what the last call for `source` listed and this one does not. Return how many files were deleted.

    Args:
        out: the folder; all of `files` lie below it.
        source: any JSON value that names what was written, and from where.

    Raises:
        OSError: the list cannot be written.
    """
    mark = hashlib.sha256(json.dumps(source).encode()).hexdigest()[:12]
    place = out / _NAMES.format(mark)
    now = {file.relative_to(out).as_posix(): _digest(file) for file in files}
    earlier = _read(place)
    others = {name for file in out.glob(_NAMES.format("*")) if file != place for name in _read(file)}
    stale = {name: digest for name, digest in earlier.items() if name not in now and name not in others}
    deleted = sum(map(_delete, _unchanged(out, stale)))
    if now or earlier:
        write_atomic(place, json.dumps({"files": dict(sorted(now.items()))}, indent=1) + "\n")
    return deleted


def _unchanged(out: Path, listed: Mapping[str, str]) -> Iterator[Path]:
    """Yield the listed files that are still as they were written. Links and what lies outside of `out` are not ours."""
    root = out.resolve()
    for name, digest in listed.items():
        file = root / name
        is_ours = file.is_relative_to(root) and file.resolve() == file  # no link, and no way up
        if is_ours and file.is_file() and _digest(file) == digest:
            yield file


def _delete(file: Path) -> bool:
    """Delete a file, and its folder if that is empty then. Return False if that is not allowed."""
    try:
        file.unlink()
        for folder in file.parents[:-1]:
            folder.rmdir()  # ends at the first that is not empty: the one with the list at the latest
    except OSError:
        return not file.exists()
    return True


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(place: Path) -> dict[str, str]:
    """Return the files of a list; {} where there is none, or a damaged one."""
    try:
        return read_json(place, _List, DELETE)["files"]
    except (FileNotFoundError, ValueError):
        return {}
