"""Reading the files of a store, each checked against its type. A ValueError says which file is wrong, and why.

Only regular files are read: a link could lead out of the store, and a pipe would block the reader forever.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from kvbench.common.files import TOO_MANY
from kvbench.store.schema import AnsweredRecord, Record
from kvbench.store.validate import check

T = TypeVar("T")

MOVE = "move the folder away to compute the run again"
DELETE = "delete this file"
_BULKY = (
    "prompt_tail",
    "prediction",
    "answers",
    "token_ids",
    "kept",
)  # of a record; tables and figures need none of them


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the file cannot be read, or is a link, a folder, a pipe or a device.
        OSError: too many files are open.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in TOO_MANY:  # nothing is wrong with the file
            raise
        reason = "a symbolic link" if error.errno == errno.ELOOP else f"cannot be read ({error.strerror})"
        raise ValueError(f"{path}: {reason}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError(f"{path}: not a regular file")
    with open(fd, "rb") as file:
        try:
            return file.read()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def read_json(path: Path, kind: type[T], remedy: str) -> T:
    """Return the JSON object in `path`, checked against the TypedDict `kind`.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the file does not hold such an object; the message ends with `remedy`.
    """
    try:
        value = parse(read_bytes(path))
    except ValueError as error:
        text = str(error)
        raise ValueError(f"{text}; {remedy}" if text.startswith(f"{path}:") else f"{path}: {text}; {remedy}") from None
    try:
        check(value, kind)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {remedy}") from None
    return cast(T, value)


def parse(data: bytes) -> object:
    """Return the value of a JSON text. Raises ValueError also for NaN, infinities and deep nesting."""
    try:
        value: object = json.loads(data, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("not valid JSON (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from None
    return value


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is not a number")


def read_lines(path: Path, accept: Callable[[object], T]) -> tuple[list[T], int, int]:
    """Read a file with one JSON value per line: (values, bytes of the whole lines, bytes of a torn last line).

    `accept` checks a value and returns it, or raises ValueError. Only the last line may be torn: it lacks its newline
    or is not JSON.

    Raises:
        ValueError: another line is not valid; the message names file and line.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        data = b""
    lines = data.split(b"\n")
    unfinished = lines.pop()  # what follows the last newline; empty when the file ends well
    values: list[T] = []
    good = 0
    for number, line in enumerate(lines, start=1):
        try:
            value = parse(line)
        except ValueError as error:
            if number == len(lines) and not unfinished:
                break
            raise ValueError(f"{path}, line {number}: {error}") from None
        try:
            values.append(accept(value))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        good += len(line) + 1
    return values, good, len(data) - good


def read_records(path: Path, bulky: bool = True) -> list[Record]:
    """Read a file of records, as `read_lines`.

    With `bulky=False` the records come without texts, tokens and kept counts per head, so that thousands of runs fit
    into memory.
    """
    return read_lines(path, lambda value: as_record(value, bulky))[0]


def as_record(value: Any, bulky: bool = True) -> Record:
    """Return a JSON value as a record. Raises ValueError that names the key which is missing or wrong."""
    answered = isinstance(value, dict) and value.get("status") == "ok"
    check(value, AnsweredRecord if answered else Record)
    record = cast(Record, value)
    return record if bulky else without_bulk(record)


def without_bulk(record: Record) -> Record:
    """Return a record without its texts, tokens and kept counts per head."""
    return cast(Record, {key: value for key, value in record.items() if key not in _BULKY})
