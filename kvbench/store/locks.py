"""Locks of a run folder: one process may write it, or one process per shard of the same division.

Every writer holds `flock` on a file of its own (.lock, .lock-<i>of<n>), which the system releases when the process
dies, however it dies. Looking at the others' locks and taking one's own is a single step, under a short lock
(.lock-open) that every opener takes. The files stay, empty; unlinking them would separate waiters.

No call waits inside the system: locks are asked for again and again, with pauses. So a process that is suspended while
it holds the short lock, or a wake-up that a file system loses, makes nobody wait longer than they agreed to.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
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
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 1.0  # seconds between two tries
_OPENING = 30.0  # seconds that another process may need for opening a folder
_LOOKING = 5.0  # seconds that a reader waits for openers
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

    An exception in the block releases the lock.

    Raises:
        ValueError: the folder is held and `wait` is False; it is still held after `timeout` seconds; this very process
            holds it; the file system has no locks.
    """
    limit = timeout if wait else _OPENING
    deadline = None if limit is None else time.monotonic() + limit
    pause, has_told = _FIRST_PAUSE, False
    while True:
        with _gate(folder, deadline) as is_alone:
            lock = _take(folder, shard) if is_alone else None
            if lock is not None:
                try:
                    yield lock
                except BaseException:
                    lock.release()
                    raise
                return
        if not wait:
            raise ValueError(f"{folder}: another process is writing this run")
        if not has_told:
            log.warning("waiting for another process that is writing %s", folder)
            has_told = True
        if deadline is not None and time.monotonic() >= deadline:
            raise ValueError(f"{folder}: another process still writes this run after {timeout} s")
        pause = _sleep(pause, deadline)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from opening a folder in the block. Raises ValueError if one is opening it for too long."""
    with _gate(folder, time.monotonic() + _OPENING) as is_alone:
        if not is_alone:
            raise ValueError(f"{folder}: another process has been opening this run for {_OPENING:g} s")
        yield


def writers(folder: Path) -> list[str] | None:
    """Return the writers at work in a folder now: "" for all samples, "1of4" for a shard; None if that is unknown.

    Writes nothing. An opener may have to wait for it, for microseconds.
    """
    try:
        with _gate(folder, time.monotonic() + _LOOKING, only_look=True) as is_quiet:
            if not is_quiet:
                return None
            return [file.name[6:] for file in _lock_files(folder) if _is_held(file, os.O_RDONLY, fcntl.LOCK_SH)]
    except (OSError, ValueError):
        return None


def _lock_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob(".lock*") if _LOCK.fullmatch(file.name))


@contextmanager
def _gate(folder: Path, deadline: float | None, only_look: bool = False) -> Iterator[bool]:
    """Keep others from opening this folder inside the block; yield False if that was not possible until the deadline.

    A reader makes no file: without one, nobody ever opened the folder.
    """
    try:
        fd = _open(folder / _GATE, os.O_RDONLY if only_look else os.O_RDWR | os.O_CREAT)
    except FileNotFoundError:
        if not only_look:
            raise
        yield True
        return
    try:
        kind, pause = fcntl.LOCK_SH if only_look else fcntl.LOCK_EX, _FIRST_PAUSE
        while not (is_taken := _flock(fd, kind, folder)):
            if deadline is not None and time.monotonic() >= deadline:
                break
            pause = min(_sleep(pause, deadline), 0.05)
        yield is_taken
    finally:
        os.close(fd)


def _sleep(pause: float, deadline: float | None) -> float:
    """Sleep, at most until the deadline. Return the next pause."""
    time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic())))
    return min(1.5 * pause, _LONGEST_PAUSE)


def _take(folder: Path, shard: Shard) -> Lock | None:
    """Take the lock for `shard`; None when a rival is at work. The caller is alone at the gate."""
    own = folder / f".lock{suffix(shard)}"
    for file in _lock_files(folder):
        division = _LOCK.fullmatch(file.name)
        assert division is not None
        is_sibling = shard is not None and division[2] == str(shard[1])  # another shard of the same division
        if file != own and not is_sibling and _is_held(file, os.O_RDWR, fcntl.LOCK_EX):
            return None
    if os.path.realpath(own) in _held:
        raise ValueError(f"{folder}: this process is already writing this run")
    fd = _open(own, os.O_RDWR | os.O_CREAT)
    try:
        is_free = _flock(fd, fcntl.LOCK_EX, folder)
    except BaseException:
        os.close(fd)
        raise
    if is_free:
        return Lock(own, fd)
    os.close(fd)
    return None


def _is_held(file: Path, access: int, kind: int) -> bool:
    """Return True if another process holds a lock file. Raises ValueError when this one does: waiting would not end."""
    if access == os.O_RDWR and os.path.realpath(file) in _held:
        raise ValueError(f"{file.parent}: this process is already writing this run")
    fd = _open(file, access)
    try:
        return not _flock(fd, kind, file.parent)
    finally:
        os.close(fd)


def _open(file: Path, flags: int) -> int:
    """Open a lock file. Raises ValueError for a link, a pipe or a folder in its place, which nobody of us made."""
    try:
        fd = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise ValueError(f"{file}: not a lock file; delete it") from None
        raise
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise ValueError(f"{file}: not a lock file; delete it")


def _flock(fd: int, kind: int, folder: Path) -> bool:
    """Lock without waiting; False if it is held. Raises ValueError on a file system without locks."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno in _NO_LOCKS:
            reason = f"the file system has no file locks ({error.strerror})"
            raise ValueError(f"paths.outputs: {folder}: {reason}; choose another one") from None
        raise
    return True
