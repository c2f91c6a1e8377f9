"""The parts of a decode step that need the host, and that a recording of the step leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Work = Callable[[], None]


class HostWork:
    """Work that needs the host: done at once, or in every replay of a recording that is under way.

    Such work reads and writes tensors that stay where they are. It returns nothing.
    """

    def __init__(self) -> None:
        self._record: Callable[[Work], None] | None = None

    def __call__(self, work: Work) -> None:
        """Do the work, or give it to the recording."""
        if self._record is None:
            work()
        else:
            self._record(work)

    @contextmanager
    def recorded_by(self, record: Callable[[Work], None]) -> Iterator[None]:
        """Give the work of a block to a recording, which does not do it yet."""
        self._record = record
        try:
            yield
        finally:
            self._record = None
