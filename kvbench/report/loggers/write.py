"""An entry from the store into a sink: opened when there is something to show, finished once, noted in the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from kvbench.report.loggers import content
from kvbench.report.loggers.entries import Entry
from kvbench.report.loggers.ledger import Ledger, read_ledger, release, stamp, take_lock, write_ledger
from kvbench.report.loggers.sinks import About, Content, HistoryRow, OpenEntry, Sink
from kvbench.store import StoredRun


class Writing:
    """An entry of a sink that this process alone writes. `close` it in the end."""

    def __init__(self, sink: Sink, id: str) -> None:
        """Take the lock; `is_ours` tells whether that worked. Raises OSError if the place cannot be written."""
        self.sink = sink
        self.place = sink.place(id)
        self._lock = take_lock(self.place)
        self.before = read_ledger(self.place)
        self.open: OpenEntry | None = None

    @property
    def is_ours(self) -> bool:
        """True if no other process writes the entry."""
        return self._lock is not None

    def has(self, mark: str) -> bool:
        """Return True if the sink has all of the entry as of this stamp."""
        before = self.before
        return before.complete and before.stamp == mark and self.sink.holds(before)

    def log(self, about: About, rows: Iterable[HistoryRow]) -> None:
        """Write the rows that are new; open the entry if it is not."""
        if self.open is None:
            write_ledger(self.place, replace(self.before, complete=False))
            self.open = self.sink.open(about, self.before)
            write_ledger(self.place, replace(self.open.ledger(), complete=False, device=about.device))
        done = self.open.step
        self.open.log([row for row in rows if row.step > done])

    def finish(self, about: About, rows: Iterable[HistoryRow], shown: Content, mark: str) -> Ledger:
        """Write all that is missing, close the entry and note that it is complete."""
        self.log(about, rows)
        assert self.open is not None, "log opens it"
        self.open.finish(shown)
        ledger = replace(self.open.ledger(), stamp=mark, complete=True, group=about.group, device=about.device)
        ledger.summary = dict(shown.summary)
        write_ledger(self.place, ledger)
        self.open, self.before = None, ledger
        return ledger

    def close(self) -> None:
        """Leave the entry to others. What is open is abandoned: the next process writes it again."""
        try:
            if self.open is not None:
                self.open.abandon()
        finally:
            self.open = None
            release(self._lock)
            self._lock = None


def about(entry: Entry, runs: Sequence[StoredRun], sink: Sink, id: str) -> About:
    """Return how an entry is announced to a sink."""
    tags = list(dict.fromkeys([*entry.tags, *sink.tags]))
    config = content.config(entry, runs)
    return About(id, entry.name, sink.group or entry.group, "benchmark", tags, config, entry.device)


def mark_of(entry: Entry, sink: Sink) -> str:
    """Return the stamp of an entry as it is now in the store, and as it would be announced."""
    return stamp(entry.folders, [sink.group or entry.group, list(sink.tags)])


def update(writing: Writing, entry: Entry, runs: Sequence[StoredRun], id: str) -> None:
    """Write what is new of an entry that is still being computed."""
    writing.log(about(entry, runs, writing.sink, id), content.history(runs))


def finish(writing: Writing, entry: Entry, id: str) -> Mapping[str, object]:
    """Write all of an entry, unless the sink has it. Return its summary."""
    mark = mark_of(entry, writing.sink)  # before the runs are read: what comes later makes another stamp
    if writing.open is None and writing.has(mark):
        return writing.before.summary
    runs = entry.runs()
    if not runs:
        return {}
    shown = content.content(entry, runs, writing.place / "media")
    return writing.finish(about(entry, runs, writing.sink, id), content.history(runs), shown, mark).summary
