"""The entries of some run folders on their way into the sinks, again and again or once."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from kvbench.common.text import one_line
from kvbench.report.loggers import sweeps, write
from kvbench.report.loggers.entries import Entry, entries_of, entry_key, read_manifests, with_other_datasets
from kvbench.report.loggers.ledger import Ledger, read_ledger, stamp
from kvbench.report.loggers.order import Order
from kvbench.report.loggers.overview import overview
from kvbench.report.loggers.sinks import HistoryRow, Sink
from kvbench.report.loggers.sweeps import Sweep, sweeps_of
from kvbench.report.loggers.write import Writing
from kvbench.store import Manifest, StoredRun, recorded_ids

log = logging.getLogger(__name__)

_MOST_OPEN = 100  # entries that are written while they are computed; further ones are written when they end
_MOST_FOLLOWED = 2000  # runs of a sweep whose progress is followed
_AGAIN = 2.0  # seconds until an entry that another process was writing is tried once more


class Follower:
    """The run folders of an order, and what the sinks have of them.

    Args:
        working: tells the command that a piece of work begins, and at the end of the block that it ends.
        send: sends an event to the command.
    """

    def __init__(
        self,
        order: Order,
        sinks: Sequence[Sink],
        working: Callable[[str], AbstractContextManager[None]],
        send: Callable[..., None],
    ) -> None:
        self.order, self.sinks, self._working, self._send = order, sinks, working, send
        self.folders = [Path(folder) for folder in order.folders]
        self.sweeps = sweeps_of(Path(order.outputs))
        self.failures = 0
        self._manifests: dict[Path, Manifest] = {}
        self._writings: dict[tuple[str, str], Writing] = {}
        self._stamps: dict[str, str] = {}
        self._counts: dict[Path, tuple[str, int]] = {}
        self._broken: set[tuple[str, str]] = set()

    def entries(self, whole: bool = False) -> list[Entry]:
        """Return the entries of the folders that are there by now.

        Args:
            whole: with all datasets of their suites, also those that other commands have computed.
        """
        self._read(self.folders)
        own = {folder: self._manifests[folder] for folder in self.folders if folder in self._manifests}
        if whole and self.order.live:
            parts = [folder for folder, manifest in own.items() if manifest["part"] is not None]
            others = with_other_datasets(parts)
            self._read(others)
            keys = {entry_key(manifest) for manifest in own.values()}
            there = {folder: self._manifests[folder] for folder in others if folder in self._manifests}
            own |= {folder: manifest for folder, manifest in there.items() if entry_key(manifest) in keys}
        return entries_of(own, {folder: sweep.group for folder, sweep in self.sweeps.items()})

    def _read(self, folders: Sequence[Path]) -> None:
        """Read the manifests that are new."""
        new = [folder for folder in folders if folder not in self._manifests]
        self._manifests |= read_manifests([folder for folder in new if (folder / "manifest.json").is_file()])

    def look(self) -> None:
        """Write what is new since the last look."""
        for entry in self.entries():
            mark = stamp(entry.folders, None)
            if self._stamps.get(entry.name) == mark:
                continue
            self._stamps[entry.name] = mark
            runs = entry.runs()
            for sink in self.sinks:
                own = _known(entry, sink)
                self._attempt(sink, own.name, own.id, partial(self._update, sink, own, runs))
        for sweep in self._sweeps_to_show():
            row = self._progress(sweep)
            for sink in self.sinks if row is not None else ():
                assert row is not None
                self._attempt(sink, sweep.group, sweep.id, partial(self._log, sink, sweep, row))

    def _update(self, sink: Sink, entry: Entry, runs: Sequence[StoredRun]) -> None:
        """Write the new rows of an entry; if it is no suite and all is recorded, the rest as well."""
        writing = self._writing(sink, entry.id, _MOST_OPEN)
        if writing is None:
            return
        if entry.manifest["part"] is None and all(run.progress.is_done for run in runs):
            write.finish(writing, entry, self._run_id(writing, entry))
            self._drop(sink, entry.id)
        elif any(run.samples for run in runs):
            write.update(writing, entry, runs, self._run_id(writing, entry))

    def finish(self) -> None:
        """Write all that is missing of the entries, then of their sweeps; close everything."""
        self._broken.clear()  # what failed once, such as a full disk, may have room now
        left: list[tuple[Sink, Entry]] = []
        entries = self.entries(whole=True)
        for number, entry in enumerate(entries, start=1):
            for sink in self.sinks:
                own = _known(entry, sink)
                self._attempt(sink, own.name, own.id, partial(self._finish, sink, own, left))
                self._drop(sink, own.id)
            self._send(written=number, of=len(entries))
        if left:
            time.sleep(_AGAIN)
        busy: list[tuple[Sink, Entry]] = []
        for sink, entry in left:
            self._attempt(sink, entry.name, entry.id, partial(self._finish, sink, entry, busy))
            self._drop(sink, entry.id)
        for sink, entry in busy:
            log.info("%s: another process is writing %s", sink.name, entry.name)
        for sweep in self._sweeps_to_show():
            for sink in self.sinks:
                self._attempt(sink, sweep.group, sweep.id, partial(self._finish_sweep, sink, sweep))
                self._drop(sink, sweep.id)
                report = f"report-{sweep.mark}"
                self._attempt(sink, f"report of {sweep.group}", report, partial(self._share, sink, sweep))

    def _finish(self, sink: Sink, entry: Entry, left: list[tuple[Sink, Entry]]) -> None:
        """Write all of an entry, or append it to `left` if another process is writing it."""
        writing = self._writing(sink, entry.id)
        if writing is None:
            left.append((sink, entry))
            return
        write.finish(writing, entry, self._run_id(writing, entry))

    def _run_id(self, writing: Writing, entry: Entry) -> str:
        """Return the id of an entry in the logger: that of before, or the one that an agent of a W&B sweep gives."""
        variants = {folder.name.rpartition("-")[0] for folder in self.folders}
        agent = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        given = agent if agent and self.order.live and len(variants) == 1 and writing.sink.name == "wandb" else None
        return writing.before.id or given or entry.id

    def _writing(self, sink: Sink, id: str, most: int | None = None) -> Writing | None:
        """Return the open entry of a sink; None if another process has it, or if `most` are open."""
        key = sink.name, id
        if key not in self._writings:
            if most is not None and sum(name == sink.name for name, _ in self._writings) >= most:
                return None
            writing = Writing(sink, id)
            if not writing.is_ours:
                return None
            self._writings[key] = writing
        return self._writings[key]

    def _drop(self, sink: Sink, id: str) -> None:
        """Close an entry of a sink, if it is open."""
        writing = self._writings.pop((sink.name, id), None)
        if writing is not None:
            self._attempt(sink, id, "", writing.close)

    def _attempt(self, sink: Sink, what: str, key: str, action: Callable[[], object]) -> None:
        """Do something with an entry. An error of a logger stops neither the other entries nor the other loggers."""
        if (sink.name, key) in self._broken:
            return
        with self._working(f"{sink.name}: {what}"):
            try:
                action()
            except Exception as error:  # whatever a logger raises
                self.failures += 1
                if key:
                    self._broken.add((sink.name, key))
                log.warning("%s: %s: %s", sink.name, what, one_line(f"{type(error).__name__}: {error}"))
                log.debug("%s", what, exc_info=True)

    def _sweeps_to_show(self) -> list[Sweep]:
        """Return the sweeps of at least two runs that the folders belong to."""
        belong = {sweep.mark: sweep for folder in self.folders if (sweep := self.sweeps.get(folder)) is not None}
        return [sweep for _, sweep in sorted(belong.items()) if len(sweep.folders) > 1]

    def _progress(self, sweep: Sweep) -> HistoryRow | None:
        """Return how far a sweep is; None before its first sample."""
        if len(sweep.folders) > _MOST_FOLLOWED:
            return None
        self._read(sweep.folders)
        counts = {folder: self._count(folder) for folder in sweep.folders if folder in self._manifests}
        recorded = sum(counts.values())
        complete = sum(count >= self._manifests[folder]["num_samples"] for folder, count in counts.items())
        numbers = {"recorded": recorded, "runs": len(sweep.folders), "begun": len(counts), "complete": complete}
        values = {key: float(number) for key, number in numbers.items()}
        return HistoryRow(recorded, time.time(), values) if recorded else None

    def _count(self, folder: Path) -> int:
        """Return how many samples of a run are recorded, read again only if its files have changed."""
        mark = stamp([folder], None)
        if self._counts.get(folder, ("", 0))[0] != mark:
            try:
                self._counts[folder] = mark, len(recorded_ids(folder))
            except (ValueError, OSError):
                self._counts[folder] = mark, 0
        return self._counts[folder][1]

    def _log(self, sink: Sink, sweep: Sweep, row: HistoryRow) -> None:
        writing = self._writing(sink, sweep.id)
        if writing is not None:
            writing.log(sweeps.about(sweep, sink.tags, sink.group), [row])

    def _entries_with_ledgers(self, sink: Sink, sweep: Sweep) -> list[tuple[Entry, Ledger]]:
        """Return the entries of a sweep, and what the sink has of each."""
        self._read(sweep.folders)
        known = {folder: self._manifests[folder] for folder in sweep.folders if folder in self._manifests}
        entries = [_known(entry, sink) for entry in entries_of(known, dict.fromkeys(sweep.folders, sweep.group))]
        return [(entry, read_ledger(sink.place(entry.id))) for entry in entries]

    def _share(self, sink: Sink, sweep: Sweep) -> None:
        """Write the report of a sweep, where the sink has reports."""
        entries = self._entries_with_ledgers(sink, sweep)
        sink.share(overview(sweep, read_ledger(sink.place(sweep.id)), entries, self._manifests))

    def _finish_sweep(self, sink: Sink, sweep: Sweep) -> None:
        """Write the entry of a sweep, unless the sink has it: a table and figures of all its entries."""
        writing = self._writing(sink, sweep.id)
        if writing is None:
            return
        entries = self._entries_with_ledgers(sink, sweep)
        mark = stamp([], [[ledger.stamp, ledger.complete] for _, ledger in entries])
        if writing.open is None and writing.has(mark):
            return
        with_summaries = [(entry, ledger.summary) for entry, ledger in entries]
        shown = sweeps.content(with_summaries, writing.place / "media")
        counts = {key: value for key, value in shown.summary.items() if isinstance(value, int)}
        row = HistoryRow(counts["recorded"], None, {key: float(value) for key, value in counts.items()})
        writing.finish(sweeps.about(sweep, sink.tags, sink.group), [row], shown, mark)


def _known(entry: Entry, sink: Sink) -> Entry:
    """Return an entry with the id under which a sink has it already: earlier versions left out the kind of device."""
    before = read_ledger(sink.place(entry.former_id))
    if not before.id:
        return entry
    is_ours = before.device in ("", entry.device)
    return replace(entry, id=entry.former_id if is_ours else f"{entry.former_id}-{entry.device}")
