"""A file of lines that survives a crash and a full disk: each line is on disk when `append` returns."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from kvbench.common.files import sync_folder

log = logging.getLogger(__name__)


class LineFile:
    """A file that is open for appending lines, by this process alone."""

    def __init__(self, path: Path, end: int, torn: int) -> None:
        """Open or create the file, and cut off a torn last line.

        Args:
            path: the file.
            end: bytes of its whole lines.
            torn: bytes after them, the rest of a line whose writer was killed.

        Raises:
            OSError: the file cannot be opened or cut, or is a symbolic link.
        """
        self.path = path
        self._end = end
        self._fd: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        if torn:
            log.warning("%s: dropped a torn last line of %d bytes", path, torn)
            os.ftruncate(self._fd, end)
            os.fsync(self._fd)
        sync_folder(path.parent)

    @property
    def is_open(self) -> bool:
        """True until the file is closed, or a torn line could not be cut off."""
        return self._fd is not None

    def append(self, line: bytes) -> None:
        """Append a line, which ends with a newline. It is on disk when this returns.

        Raises:
            OSError: it cannot be written, with the file's name. The file then ends with its last whole line.
        """
        if self._fd is None:
            raise OSError(errno.EBADF, "closed", str(self.path))
        try:
            rest = line
            while rest:  # a full disk takes a part first and refuses only the remainder
                rest = rest[os.write(self._fd, rest) :]
            os.fsync(self._fd)
        except OSError as error:
            self._roll_back()
            raise OSError(error.errno or errno.EIO, error.strerror, str(self.path)) from None
        except BaseException:  # an interrupt between two parts
            self._roll_back()
            raise
        self._end += len(line)

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _roll_back(self) -> None:
        """Cut off a half-written line. If that fails too, close the file: later lines would follow a torn line."""
        assert self._fd is not None
        try:
            os.ftruncate(self._fd, self._end)
        except OSError:
            self.close()
            log.error("%s: could not cut off a torn last line; the next start will", self.path)
