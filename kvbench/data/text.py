"""Data files, read with care: what is damaged, endless or far too large is an error of one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LARGEST_FILE = 4 << 30  # bytes
LONGEST_LINE = 32 << 20  # bytes; a prompt of a million tokens has less than eight


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. Raises ValueError for a missing, unreadable or far too large one."""
    try:
        if not path.is_file():  # also a named pipe, which would never end
            raise ValueError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path}: {path.stat().st_size} bytes, more than a data file can have")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def read_lines(path: Path) -> tuple[list[str], bytes]:
    """Return the lines of a text file without empty ones at its end, and its bytes. Raises ValueError."""
    data = read_bytes(path)
    start = 0
    while (end := data.find(b"\n", start)) >= 0 or start < len(data):
        end = len(data) if end < 0 else end
        if end - start > LONGEST_LINE:
            number = data.count(b"\n", 0, start) + 1
            raise ValueError(f"{path}, line {number}: {end - start} bytes, more than a sample can have")
        start = end + 1
    try:
        lines = data.decode("utf-8").split("\n")  # not splitlines: texts hold other line ends
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {number}: not UTF-8") from None
    while lines and not lines[-1].strip():
        lines.pop()
    return lines, data


def parse_json(text: str | bytes, where: str) -> Any:
    """Return the value of a JSON text. Raises ValueError, beginning with `where`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: nested thousands of levels deep
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{where}: cut off or not JSON ({reason})") from None


def read_json(path: Path) -> Any:
    """Return the value of a JSON file. Raises ValueError."""
    return parse_json(read_bytes(path), str(path))


def is_whole_text(value: Any) -> bool:
    """Return True if no text inside a JSON value holds half of a character, which no tokenizer can read."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True
