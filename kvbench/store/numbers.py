"""Runs of a store as arrays of numbers, which is what tables and statistics need of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from kvbench.store.columns import Columns, columns_of, read_columns
from kvbench.store.files import without_bulk
from kvbench.store.read import has_new_scores, load_manifests, load_run, skip
from kvbench.store.schema import Manifest, Record, Status
from kvbench.store.shards import merged_status, sample_files, statuses

_THREADS = 4  # pyarrow parses without the interpreter's lock


class ReadRun(Protocol):
    """A run that is in memory with its records, such as a `StoredRun`."""

    @property
    def manifest(self) -> Manifest:
        """Identity, labels, device and headline."""
        ...

    @property
    def status(self) -> Status:
        """The merged status of its writers."""
        ...

    @property
    def samples(self) -> Sequence[Record]:
        """One record per sample id."""
        ...


@dataclass(frozen=True)
class RunNumbers:
    """A run without its texts: about 100 bytes a sample. Samples are sorted by id; see `Columns` for the arrays."""

    path: Path
    manifest: Manifest
    status: Status
    columns: Columns


def numbers_of(run: ReadRun | RunNumbers) -> RunNumbers:
    """Return the numbers of a run that was read with its records; numbers stay as they are."""
    if isinstance(run, RunNumbers):
        return run
    records = sorted(map(without_bulk, run.samples), key=lambda record: record["id"])
    return RunNumbers(getattr(run, "path", Path()), run.manifest, run.status, columns_of(records))


def load_numbers(
    root: str | Path,
    benchmark: str | None = None,
    wanted: Callable[[Manifest], bool] = lambda manifest: True,
) -> list[RunNumbers]:
    """Read the numbers of the runs at or below `root`, sorted by folder.

    `benchmark` and `wanted` as for `iterate_runs`. A damaged run is skipped with a warning. Runs with the same samples
    share the tuples of ids, contexts and buckets.
    """
    return list(iterate_numbers(load_manifests(root, benchmark, wanted)))


def iterate_numbers(manifests: dict[Path, Manifest]) -> Iterator[RunNumbers]:
    """Yield the numbers of the runs in these folders, in their order; a damaged run is skipped with a warning."""
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        for result in pool.map(_read, *zip(*manifests.items(), strict=True)) if manifests else ():
            if isinstance(result, str):
                skip(result)
                continue
            ids, context, bucket = (
                shared.setdefault(value, value)
                for value in (result.columns.ids, result.columns.context, result.columns.bucket)
            )
            yield replace(result, columns=replace(result.columns, ids=ids, context=context, bucket=bucket))


def _read(path: Path, manifest: Manifest) -> RunNumbers | str:
    """Return the numbers of a run, or why it cannot be read."""
    try:
        written = statuses(path)  # before the records, so that what it calls done is among them
        files = sample_files(path)
        columns = None if has_new_scores(path) else read_columns(files, manifest)
        if columns is None or (not columns.state.all() and manifest["headline"] not in columns.scores):
            return numbers_of(load_run(path, bulky=False))
        return RunNumbers(path, manifest, merged_status(written, len(columns.ids), manifest["num_samples"]), columns)
    except ValueError as error:
        return str(error)
