"""Dials that name a file, such as a table of heads: `table: "file:NAME"` in a method's YAML.

The default of such a dial begins with `file:`. The user gives a path (`method.table=heads.json`), relative to the
working directory or to the configuration folder. The part that reads the dial gets a `DialFile`. The content of the
file, not its name, is part of a run's identity.

`file:NAME; COMMAND` also says which command writes such a file, for the message about a missing one. A file
`NAME.about.json` next to `NAME.json` says how it was computed. If it holds a sha256, the file must have it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from kvbench.common.paths import conf_dir

_MARK = "file:"
_LARGEST = 2**26  # bytes; a table of every head of every layer has some thousand numbers


@dataclass(frozen=True)
class DialFile:
    """The text of a file that a dial names. Two are equal if their texts are, wherever the files lie.

    In messages it is its path, as the user gave it.
    """

    text: str = field(repr=False)
    path: str = field(compare=False)

    def __str__(self) -> str:
        return self.path

    @property
    def digest(self) -> str:
        """The sha256 of the text, as it enters the identity of a run."""
        return f"sha256:{hashlib.sha256(self.text.encode()).hexdigest()}"


def names_file(default: object) -> bool:
    """Return True if the default of a dial says that the dial names a file."""
    return isinstance(default, str) and default.startswith(_MARK)


def file_dials(dials: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, DialFile]:
    """Return {dial: its file} for the dials that name one.

    Raises:
        ValueError: a file is missing or cannot be read; one line naming the dial.
    """
    return {dial: read_file(dial, dials[dial], default) for dial, default in defaults.items() if names_file(default)}


def read_file(dial: str, value: object, default: str = "") -> DialFile:
    """Return the file that the value of a dial names. Raises ValueError naming the dial if it is no readable text.

    Args:
        default: the default of the dial, which may say which command writes such a file.
    """
    path, command = _named(str(value)) if isinstance(value, str | os.PathLike) else ("", "")
    command = command or _named(default)[1]
    remedy = f"; `{command}` writes one" if command else ""
    if not path.strip() or "\0" in path:
        shown = "null" if value is None else path if isinstance(value, str) else value
        raise ValueError(f"method.{dial}={shown}: must be the path of a file{remedy}")
    try:
        file = _located(path)
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"method.{dial}={path}: is no file")
        if status.st_size > _LARGEST:
            raise ValueError(f"method.{dial}={path}: larger than {_LARGEST >> 20} MiB")
        text = _text(file, status.st_mtime_ns, status.st_size)
    except UnicodeDecodeError:
        raise ValueError(f"method.{dial}={path}: is no text in UTF-8") from None
    except FileNotFoundError:
        where = "" if Path(path).is_absolute() else f", neither in {Path.cwd()} nor in {conf_dir()}"
        raise ValueError(f"method.{dial}={path}: no such file{where}{remedy}") from None
    except OSError as error:
        raise ValueError(f"method.{dial}={path}: cannot be read ({error.strerror})") from None
    read = DialFile(text, path)
    _check_sum(dial, read, file.with_suffix(".about.json"))
    return read


def json_object(text: str, of: str) -> dict[str, Any]:
    """Return the object in a JSON text that is not empty; `of` names its values. Raises ValueError for another text."""
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(content, dict) or not content:
        raise ValueError(f"not an object of {of}")
    return content


def _named(text: str) -> tuple[str, str]:
    """Return the path that a value or a default names, and the command that writes such a file, or ""."""
    if not text.startswith(_MARK):
        return text, ""
    path, _, command = text.removeprefix(_MARK).partition("; ")
    return path, command.strip()


def _check_sum(dial: str, file: DialFile, about: Path) -> None:
    """Raise ValueError if the file next to it holds another checksum."""
    try:
        facts = json.loads(about.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"method.{dial}={file}: {about} cannot be read; restore it, or remove it") from None
    expected = facts.get("sha256") if isinstance(facts, dict) else None
    if expected is not None and file.digest != f"sha256:{expected}":
        raise ValueError(f"method.{dial}={file}: is not the file that {about} describes; restore it, or remove {about}")


def _located(path: str) -> Path:
    """Return where a file lies: at the path, from the working directory, or in the configuration folder."""
    file = Path(path).expanduser()
    return file if file.is_absolute() or file.exists() else conf_dir() / file


@cache
def _text(file: Path, stamp: int, size: int) -> str:
    """Return the text of a file, read once as long as the file stays as it is: all jobs of a sweep ask for it."""
    return file.read_text(encoding="utf-8")
