"""Notes of what a logger has already, one small file per entry, and the lock of the process that writes it.

<outputs>/<logger>/kvbench/<project>/<id>/
    entry.json      {"stamp", "id", "complete", "online", "folder", "sent", "group", "summary", "shown",
                     "entity", "server", "device"}
    lock            held by the process that writes the entry, released when it dies
    media/          predictions and pictures, as they were handed to the logger
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kvbench.common.files import write_atomic
from kvbench.store.shards import sample_files, status_files

_FORMAT = 1  # raise it when entries should be written again because they show more


@dataclass
class Ledger:
    """The note of what a logger has of an entry.

    Attributes:
        stamp: of the run folders as they were when it was written, see `stamp`.
        id: the id of the run in the logger.
        device: the kind of device of the entry; "" in notes of earlier versions, which had one entry for all kinds.
        complete: False while it is being written.
        online: True if it went to a server; then there is no folder to send.
        folder: the name of the logger's own folder, "" if it has none.
        sent: True if the folder was uploaded later.
        group: the group that it is in.
        summary: the values that the table of the sweep needs.
        shown: the names of its tables and images.
        entity: the user or team that it was written for, "" for the user's own; None if nobody noted it.
        server: the server that has it; None if it was not sent, or nobody noted it.
    """

    stamp: str = ""
    id: str = ""
    complete: bool = False
    online: bool = False
    folder: str = ""
    sent: bool = False
    group: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    shown: list[str] = field(default_factory=list)
    entity: str | None = None
    server: str | None = None
    device: str = ""


def read_ledger(place: Path) -> Ledger:
    """Return the ledger of an entry; an empty one if there is none, or if it cannot be read."""
    try:
        content = json.loads((place / "entry.json").read_text(encoding="utf-8"))
        return Ledger(**content)
    except (OSError, ValueError, TypeError):
        return Ledger()


def write_ledger(place: Path, ledger: Ledger) -> None:
    """Replace the ledger of an entry. Raises OSError."""
    place.mkdir(parents=True, exist_ok=True)
    write_atomic(place / "entry.json", json.dumps(asdict(ledger), indent=2) + "\n")


def stamp(folders: Sequence[Path], more: object) -> str:
    """Return a hash of sizes and times of the files in run folders, and of `more`, which is plain data.

    Nothing is read: of 10,000 runs it takes a second.
    """
    facts: list[object] = [_FORMAT, more]
    for folder in folders:
        named = [folder / name for name in ("status.json", "scores.json", "manifest.json")]
        for file in [*sample_files(folder), *status_files(folder).values(), *named]:
            with contextlib.suppress(OSError):
                stat = file.stat()
                facts.append([folder.name, file.name, stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def locked(place: Path) -> Iterator[bool]:
    """Hold the lock of an entry in the block. Yield False if another process holds it; nothing waits."""
    lock = take_lock(place)
    try:
        yield lock is not None
    finally:
        release(lock)


def take_lock(place: Path) -> int | None:
    """Return the open lock file of an entry, None if another process holds it. Raises OSError.

    Where the file system has no locks, two commands that log the same entry at the same time may both write it.
    """
    place.mkdir(parents=True, exist_ok=True)
    fd = os.open(place / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK):
            os.close(fd)
            return None
    return fd


def release(lock: int | None) -> None:
    """Release a lock; nothing happens for None."""
    if lock is not None:
        os.close(lock)
