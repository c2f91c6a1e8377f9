"""A folder of records that are computed once: setting.json, a file with a line per record, and what is made from them.

A file that is computed from prompts has a record per prompt in samples.jsonl. The folder's name has a hash of
everything that the file depends on but versions: after an upgrade it is continued, with a warning, as a run is.
NAME.about.json next to NAME.json has its checksum, and how it was computed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from kvbench.common import clock
from kvbench.common.files import write_atomic
from kvbench.common.line_file import LineFile
from kvbench.methods.files import DialFile
from kvbench.store import locks
from kvbench.store.files import read_lines
from kvbench.store.identity import identity_hash, plain

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Mapping[str, Any])
"""A record, with its id as `id`."""


class RecordFolder(Generic[R]):
    """A folder that this process alone writes. `RecordFolder.open` creates it.

    Attributes:
        folder: where it is.
        records: the latest record on file of every id.
    """

    def __init__(self, file: Path, setting: Mapping[str, Any], accept: Callable[[object], R]) -> None:
        lines, end, torn = read_lines(file, accept)
        self.folder, self._setting = file.parent, setting
        self.records: dict[str, R] = {record["id"]: record for record in lines}
        self._lines = LineFile(file, end, torn)

    @classmethod
    @contextmanager
    def open(
        cls, folder: Path, setting: Mapping[str, Any], accept: Callable[[object], R], lines: str = "samples.jsonl"
    ) -> Iterator[RecordFolder[R]]:
        """Create the folder, or continue in it.

        Args:
            setting: everything that the records depend on; `versions` are those of the code that computes them.
            accept: checks a line of the file and returns it, or raises ValueError.
            lines: the name of the file.

        Raises:
            ValueError: the folder cannot be written, another process is writing it, or its file is damaged.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locks.opening(folder, None, wait=False, timeout=None) as lock:
                setting = {**setting, **_begun_with(folder / "setting.json", setting)}
                write_atomic(folder / "setting.json", json.dumps(setting, indent=2) + "\n")
                opened = cls(folder / lines, setting, accept)
        except OSError as error:
            raise ValueError(f"paths.outputs: cannot write {folder} ({error.strerror or error})") from None
        try:
            yield opened
        finally:
            opened._lines.close()
            lock.release()

    def append(self, record: R) -> None:
        """Write a record; it is on disk when this returns. Raises OSError naming the file."""
        content = plain(dict(record), record["id"])
        self._lines.append(json.dumps(content).encode() + b"\n")
        self.records[record["id"]] = cast(R, content)

    def write(self, name: str, text: str, **facts: Any) -> Path:
        """Write NAME.json, and NAME.about.json with its checksum, these facts and the setting. Returns its path."""
        digest = DialFile(text, name).digest.removeprefix("sha256:")
        about = {"sha256": digest, **facts, **self._setting, "time": clock.now()}
        path = self.folder / f"{name}.json"
        write_atomic(path, text)
        write_atomic(self.folder / f"{name}.about.json", json.dumps(about, indent=2) + "\n")
        return path


def name_of(setting: Mapping[str, Any], *words: str) -> str:
    """Return the name of the folder for a setting: `words`, and a hash of everything but the versions."""
    return "-".join((*words, identity_hash({k: v for k, v in setting.items() if k != "versions"})[:8]))


def _begun_with(file: Path, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Return the versions with which the prompts on file began, and the present ones if these are others."""
    try:
        begun = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    was, now = begun.get("versions"), setting.get("versions")
    if was == now:
        return {key: begun[key] for key in ("continued_with",) if key in begun}
    log.warning("%s: begun with versions %s, continued with %s", file.parent, was, now)
    return {"versions": was, "continued_with": now}
