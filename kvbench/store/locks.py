"""Who may write a run folder: one process, or one process per shard of the same division.

Every writer holds `flock` on a file of its own (.lock, .lock-<i>of<n>), which the system releases when the process
dies, however it dies. Looking at the others' locks and taking one's own is a single step: it is done under a short
lock (.lock-open) that everybody takes who opens the folder. The files stay, empty; unlinking them would part waiters.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvbench.store.shards import Shard, suffix

log = logging.getLogger(__name__)

_GATE = ".lock-open"
_LOCK = re.compile(r"\.lock(-\d+of(\d+))?")
_BUSY = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK}
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
_held: set[str] = set()  # real paths of the lock files that this process holds


class Lock:
    """A lock file held by this process until `release`, or until the process ends."""

    def __init__(self, file: Path, fd: int) -> None:
        self._name, self._fd = os.path.realpath(file), fd
        _held.add(self._name)

    def release(self) -> None:
        """Let others write; harmless when repeated."""
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # closing would not do while a forked child has it open
            os.close(self._fd)
            self._fd = -1
            _held.discard(self._name)


@contextmanager
def opening(folder: Path, shard: Shard, wait: bool, timeout: float | None) -> Iterator[Lock]:
    """Take the folder's lock for `shard` (None: for all samples); nobody else opens the folder inside the block.

    An exception in the block releases the lock. Raises ValueError when the folder is held and `wait` is False, when
    it is still held after `timeout` seconds, when this very process holds it, and where there are no locks.
    """
    end = None if timeout is None else time.monotonic() + timeout
    pause, told = 0.02, False
    while True:
        with _gate(folder):
            lock = _take(folder, shard)
            if lock is not None:
                try:
                    yield lock
                except BaseException:
                    lock.release()
                    raise
                return
        if not wait:
            raise ValueError(f"{folder}: another process is writing this run")
        if not told:
            log.warning("waiting for another process that is writing %s", folder)
            told = True
        if end is not None and time.monotonic() >= end:
            raise ValueError(f"{folder}: another process still writes this run after {timeout} s")
        time.sleep(pause if end is None else max(0.0, min(pause, end - time.monotonic())))
        pause = min(1.5 * pause, 1.0)


def writers(folder: Path) -> list[str] | None:
    """The writers at work in a folder now: "" for all samples, "1of4" for a shard; None where that cannot be known.

    Writes nothing and disturbs nobody: an opener may have to wait for it, for microseconds.
    """
    try:
        with _gate(folder, only_look=True):
            return [file.name[6:] for file in _lock_files(folder) if _busy(file, os.O_RDONLY, fcntl.LOCK_SH)]
    except (OSError, ValueError):
        return None


def _lock_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob(".lock*") if _LOCK.fullmatch(file.name))


@contextmanager
def _gate(folder: Path, only_look: bool = False) -> Iterator[None]:
    """Inside the block, nobody opens this folder. A looker makes no file: without one, nobody ever opened it."""
    try:
        fd = os.open(folder / _GATE, os.O_RDONLY if only_look else os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        if not only_look:
            raise
        yield
        return
    try:
        _flock(fd, fcntl.LOCK_SH if only_look else fcntl.LOCK_EX, folder)
        yield
    finally:
        os.close(fd)


def _take(folder: Path, shard: Shard) -> Lock | None:
    """The lock for `shard`, or None when a rival is at work; the caller is alone at the gate."""
    mine = folder / f".lock{suffix(shard)}"
    for file in _lock_files(folder):
        division = _LOCK.fullmatch(file.name)
        assert division is not None
        beside = shard is not None and division[2] == str(shard[1])  # another shard of the same division
        if file != mine and not beside and _busy(file, os.O_RDWR, fcntl.LOCK_EX):
            return None
    if os.path.realpath(mine) in _held:
        raise ValueError(f"{folder}: this process is already writing this run")
    fd = os.open(mine, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        free = _flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, folder)
    except BaseException:
        os.close(fd)
        raise
    if free:
        return Lock(mine, fd)
    os.close(fd)
    return None


def _busy(file: Path, access: int, kind: int) -> bool:
    """Whether another process holds a lock file. Raises ValueError when it is this one: waiting would never end."""
    if access == os.O_RDWR and os.path.realpath(file) in _held:
        raise ValueError(f"{file.parent}: this process is already writing this run")
    fd = os.open(file, access)
    try:
        return not _flock(fd, kind | fcntl.LOCK_NB, file.parent)
    finally:
        os.close(fd)


def _flock(fd: int, kind: int, folder: Path) -> bool:
    """Lock; False if it is held. Raises ValueError on a file system without locks, where no writer would be safe."""
    try:
        fcntl.flock(fd, kind)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno in _NO_LOCKS:
            reason = f"the file system has no file locks ({error.strerror})"
            raise ValueError(f"paths.outputs: {folder}: {reason}; choose another one") from None
        raise
    return True
