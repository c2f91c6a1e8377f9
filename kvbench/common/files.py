"""Writing files so that a crash at any moment leaves them usable."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import secrets
from collections.abc import Iterator
from pathlib import Path

TOO_MANY = (errno.EMFILE, errno.ENFILE)  # of an OSError: no further file can be opened
_MOST = 2**16  # open files that a process asks for


def allow_many_files() -> None:
    """Raise the soft limit of open files towards the hard one: a sweep holds two files open per run of a group."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a system with a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def too_many_files() -> str:
    """Return the message about an error of `TOO_MANY`."""
    return (
        f"too many open files: a sweep holds at least two per run, and {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} "
        "are allowed here; give fewer methods and budgets at a time, or raise the limit with ulimit -n"
    )


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text`; a reader sees the old file or the new one, never a part of it.

    Raises OSError that names `path`, which then holds what it held before.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a file to write in the block; it takes the place of `path` at the end, as with `write_atomic`."""
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
