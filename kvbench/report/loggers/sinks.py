"""The interface of W&B and Trackio: a sink opens entries, an open entry takes rows and at the end everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kvbench.report.loggers.ledger import Ledger

Value = str | int | float | bool | None
Rows = Sequence[Sequence[Value]]


@dataclass(frozen=True)
class About:
    """The head of an entry: `job_type` is "benchmark", or "sweep" for that of a sweep, which has no `device`."""

    id: str
    name: str
    group: str
    job_type: str
    tags: Sequence[str]
    config: Mapping[str, object]
    device: str = ""


@dataclass(frozen=True)
class HistoryRow:
    """A point of the curves of an entry: `step` counts recorded samples, `seconds` is the time of the last (epoch)."""

    step: int
    seconds: float | None
    values: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """A table of plain values."""

    columns: Sequence[str]
    rows: Rows


@dataclass(frozen=True)
class Content:
    """The rest of an entry, which is written at its end.

    Attributes:
        summary: name -> value, in a table of entries a column each.
        tables: name -> table.
        images: name -> PNG file.
        files: names and files of the artifact with the predictions.
        failed: True if the run did not end well.
    """

    summary: Mapping[str, Value]
    tables: Mapping[str, Table] = field(default_factory=dict)
    images: Mapping[str, Path] = field(default_factory=dict)
    files: Sequence[Path] = ()
    failed: bool = False


@dataclass(frozen=True)
class Section:
    """Entries that may share a table: one benchmark or suite, one model, one device and one protocol.

    Attributes:
        ids: of the entries in the logger.
        is_named: no other section of the sweep has the same benchmark and model.
        is_plain: method and budget say all in which the entries differ.
        metrics: names of the numbers that the summary of an entry has, and that say something.
        shown: names of the tables and images that an entry has.
        notes: protocol, metrics, seeds and versions in words.
    """

    benchmark: str
    model: str
    ids: tuple[str, ...]
    is_named: bool
    is_plain: bool
    metrics: tuple[str, ...]
    shown: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Overview:
    """A sweep and its sections.

    Attributes:
        mark: of the plan of the sweep.
        title: the name of the sweep.
        group: that of the sweep, if all entries are in it; else None. An entry that belongs to several sweeps is in the
            group of one, and `logger.wandb.group` puts the entries of several sweeps into one group.
        sweep_id: of the entry of the sweep.
        shown: names of the tables and images of the entry of the sweep.
    """

    mark: str
    title: str
    command: str
    group: str | None
    sweep_id: str
    shown: tuple[str, ...]
    sections: tuple[Section, ...]


class OpenEntry(Protocol):
    """An entry that a logger is writing."""

    id: str
    step: int
    """The last step that it has; rows up to it are not written again."""

    def log(self, rows: Sequence[HistoryRow]) -> None:
        """Write rows, whose steps are larger than `step`."""
        ...

    def finish(self, content: Content) -> None:
        """Write everything else and close the entry; all of it is on disk, or sent, when this returns."""
        ...

    def abandon(self) -> None:
        """Close the entry without an ending, as far as that can be done."""
        ...

    def ledger(self) -> Ledger:
        """Return what is to be remembered of the entry."""
        ...


class Sink(Protocol):
    """A logger. `name` is its name in `logger=…`, `folder` the one with its files."""

    name: str
    folder: Path
    project: str
    group: str | None
    """The group of all entries, in place of their sweeps."""
    tags: Sequence[str]

    def place(self, id: str) -> Path:
        """Return the folder in which we note what was written of an entry, see `kvbench.report.loggers.ledger`."""
        ...

    def holds(self, ledger: Ledger) -> bool:
        """Return True if what was written is still there, in the place where it would be written now."""
        ...

    def open(self, about: About, before: Ledger) -> OpenEntry:
        """Begin or resume an entry. What is left of an unfinished one is replaced."""
        ...

    def share(self, overview: Overview) -> None:
        """Write or update the report of a sweep, if the logger has reports."""
        ...

    def outcome(self) -> str:
        """Return in one line where the entries are, and what to do with them."""
        ...
