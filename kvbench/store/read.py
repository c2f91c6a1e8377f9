"""Stored runs as reports read them. Nothing here changes a run, except that `write_scores` adds new scores."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

from kvbench.common.files import write_atomic
from kvbench.common.text import one_line
from kvbench.store.environment import device_kind
from kvbench.store.files import DELETE, MOVE, read_json, without_bulk
from kvbench.store.identity import plain
from kvbench.store.manifest import read_manifest
from kvbench.store.places import with_places
from kvbench.store.progress import Progress, judge
from kvbench.store.schema import AnsweredRecord, Manifest, Record, RescoredRun, Status
from kvbench.store.shards import merged, merged_status, sample_files, statuses
from kvbench.store.stored_config import read_config
from kvbench.store.validate import show

log = logging.getLogger(__name__)

_SCORES = "scores.json"


@dataclass(frozen=True)
class StoredRun:
    """A run as read from its folder: `status` is {} before the first one, `samples` has one record per id.

    Samples are sorted by id, whoever recorded them in whatever order, so that sums over them are the same to the bit.
    """

    path: Path
    manifest: Manifest
    status: Status
    samples: list[Record]

    @property
    def answered(self) -> list[AnsweredRecord]:
        """The records with an answer."""
        return [cast(AnsweredRecord, record) for record in self.samples if record["status"] == "ok"]

    @property
    def progress(self) -> Progress:
        """The progress of the run."""
        return judge(self.status, len(self.samples), self.manifest["num_samples"])

    @cached_property
    def scored_otherwise(self) -> int:
        """The number of answers with scores of another rule than the manifest names.

        The rule may change before a run is complete. Then the first answers are scored again, and scores.json has
        them; without that file, which a user may have deleted, the run has scores of two rules.
        """
        scoring = self.manifest["scoring"]
        return sum(record.get("scoring", scoring) != scoring for record in self.answered)

    @cached_property
    def config(self) -> dict[str, object]:
        """The configuration in config.yaml, read when it is asked for. Raises ValueError when it is damaged."""
        return read_config(self.path)

    def rescored(
        self,
        scoring: Mapping[str, object],
        scores: Mapping[str, Mapping[str, float]],
        marks: Mapping[str, str] | None = None,
    ) -> StoredRun:
        """Return the run with other scores (sample id → name → score) in its records.

        `marks` (sample id → mark) are of the records that the scores belong to: a sample that was computed again since
        keeps its own. None are checked where `marks` is None, as in files of earlier versions.
        """
        samples = [
            _with_scores(record, scores.get(record["id"]), scoring)
            if marks is None or marks.get(record["id"]) == _mark(record)
            else record
            for record in self.samples
        ]
        manifest = self.manifest.copy()
        manifest["scoring"] = dict(scoring)
        return replace(self, manifest=manifest, samples=samples)

    def slim(self) -> StoredRun:
        """Return the run without texts, tokens and kept counts per head, which tables and figures do not need."""
        return replace(self, samples=[without_bulk(record) for record in self.samples])


def _mark(record: Record) -> str:
    """Return a mark of when a sample was computed and how long it took. It needs no text, and no score changes it."""
    facts = [record.get("time"), record.get("timings"), record.get("device"), record.get("hardware")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _with_scores(record: Record, scores: Mapping[str, float] | None, scoring: Mapping[str, object]) -> Record:
    if scores is None or record["status"] != "ok":
        return record
    changed: AnsweredRecord = record.copy()  # type: ignore[assignment]
    changed["scores"], changed["scoring"] = dict(scores), dict(scoring)
    return changed


def load_run(path: str | Path, bulky: bool = True, digest: str | None = None, any_scoring: bool = False) -> StoredRun:
    """Read one run folder without changing it, also while it is being written.

    A torn last line is skipped. Of two records with one id an answer counts before a failure, else the later one.
    Records and statuses of shards are merged. Scores given again later (`write_scores`) replace those recorded,
    together with the manifest's "scoring". `bulky=False` leaves out texts, tokens and kept counts per head. `digest` is
    the identity hash that the run must have. `any_scoring` accepts scores of several rules, for who scores them again.

    Raises:
        ValueError: the folder has no manifest.json, a damaged file, another run, or scores of several rules.
    """
    path = Path(path)
    manifest = read_manifest(path, digest)
    written = statuses(path)  # before the records, so that what it calls done is among them
    by_id = merged(sample_files(path), bulky)
    total = manifest["num_samples"]
    status = merged_status(written, len(by_id), total)
    manifest = with_places(path, manifest, by_id.values())
    run = StoredRun(path, manifest, status, [by_id[name] for name in sorted(by_id)])
    again = _read_scores(path)
    run = run if again is None else run.rescored(again["scoring"], again["scores"], again.get("marks"))
    if run.scored_otherwise and not any_scoring:
        number = run.scored_otherwise
        words = f"{number} answer(s) were scored by another rule than the others"
        raise ValueError(f"{path}: {words}; to score all again: kvbench score {path}")
    if run.answered and not any(manifest["headline"] in record["scores"] for record in run.answered):
        raise ValueError(f"{path}: no record has the headline score {show(manifest['headline'])}; {MOVE}")
    return run


def _read_scores(path: Path) -> RescoredRun | None:
    try:
        return read_json(path / _SCORES, RescoredRun, f"{DELETE}, the run has scores of its own")
    except FileNotFoundError:
        return None


def has_new_scores(path: Path) -> bool:
    """Return True if scores were given again later, which replace those of the records."""
    return os.path.lexists(path / _SCORES)


def write_scores(
    path: Path,
    scoring: Mapping[str, object],
    scores: Mapping[str, Mapping[str, float]],
    records: Iterable[Record],
) -> None:
    """Write new scores (sample id → name → score) of `records` next to these, which stay as they are; atomic."""
    content = {
        "scoring": plain(dict(scoring), "scoring"),
        "scores": {key: dict(scores[key]) for key in scores},
        "marks": {record["id"]: _mark(record) for record in records},
    }
    write_atomic(path / _SCORES, json.dumps(plain(content, "scores")) + "\n")


def load_manifest(path: Path) -> Manifest:
    """Return the manifest of a run with the scoring that its scores are of now. Raises ValueError as `load_run`."""
    manifest, again = read_manifest(path), _read_scores(path)
    if again is not None:
        manifest["scoring"] = again["scoring"]
    return manifest


def load_runs(
    root: str | Path,
    benchmark: str | None = None,
    wanted: Callable[[Manifest], bool] = lambda manifest: True,
    bulky: bool = True,
) -> list[StoredRun]:
    """Read the runs at or below `root`, sorted by folder; [] when there are none. See `iterate_runs`."""
    return list(iterate_runs(root, benchmark, wanted, bulky))


def iterate_runs(
    root: str | Path,
    benchmark: str | None = None,
    wanted: Callable[[Manifest], bool] = lambda manifest: True,
    bulky: bool = True,
) -> Iterator[StoredRun]:
    """Yield the runs at or below `root`, sorted by folder. The records of one run at a time are in memory.

    Only the records of wanted runs are read: those of `benchmark`, if named, whose manifest `wanted` accepts. A
    damaged run is skipped with a warning, so that it does not hide the others. A copy of a run is skipped as well.
    `bulky` as for `load_run`.
    """
    for path in wanted_folders(root, benchmark, wanted):
        try:
            run = load_run(path, bulky)
        except ValueError as error:
            skip(str(error))
            continue
        yield run


def wanted_folders(
    root: str | Path,
    benchmark: str | None = None,
    wanted: Callable[[Manifest], bool] = lambda manifest: True,
) -> list[Path]:
    """Return the folders of the runs that `iterate_runs` reads. Reads manifests alone."""
    return list(load_manifests(root, benchmark, wanted))


def load_manifests(
    root: str | Path,
    benchmark: str | None = None,
    wanted: Callable[[Manifest], bool] = lambda manifest: True,
) -> dict[Path, Manifest]:
    """Return the manifests of the runs that `iterate_runs` reads, by folder; no records are read."""
    manifests: dict[Path, Manifest] = {}
    for path in run_folders(root):
        try:
            manifest = load_manifest(path)
        except ValueError as error:
            skip(str(error))
            continue
        if benchmark in (None, manifest["label"]["benchmark"]) and wanted(manifest):
            manifests[path] = manifest
    for copy, original in copies(manifests).items():
        skip(why_skipped(copy, original, manifests))
        del manifests[copy]
    return manifests


def skip(text: str) -> None:
    """Warn that a run or a folder is not read, and why."""
    log.warning("%s; skipped", one_line(text))


def copies(manifests: Mapping[Path, Manifest]) -> dict[Path, Path]:
    """Return the folders that hold a run once more, with the one that counts: at its proper place, else the largest.

    The same run on another kind of device is another run: its numbers have tables of their own.
    """
    groups: dict[tuple[str, str, str], list[Path]] = {}
    for path, manifest in manifests.items():
        groups.setdefault(run_key(manifest), []).append(path)
    result: dict[Path, Path] = {}
    for paths in groups.values():
        original, *others = sorted(paths, key=lambda path: (not _is_home(path, manifests[path]), -_size(path), path))
        result |= dict.fromkeys(others, original)
    return result


def run_key(manifest: Manifest) -> tuple[str, str, str]:
    """Return a key that is equal for runs of which a table shows one: the same identity on the same kind of device."""
    return manifest["label"]["benchmark"], manifest["hash"], device_kind(manifest["device"])


def why_skipped(path: Path, original: Path, manifests: Mapping[Path, Manifest]) -> str:
    """Return why a folder of `copies` is not read: it is a copy, or the run was computed twice."""
    if manifests[path]["created"] == manifests[original]["created"]:
        return f"{path}: a copy of the run in {original}"
    return f"{path}: the run in {original} computed again, of which tables show one; name this folder alone to see it"


def _is_home(path: Path, manifest: Manifest) -> bool:
    label = manifest["label"]
    name = f"{label['method']}-b{label['budget']}-{manifest['hash'][:8]}"
    return path.absolute().parts[-3:] == (label["benchmark"], label["model"], name)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in sample_files(path))


def run_folders(root: str | Path) -> list[Path]:
    """Return the run folders at or below `root`, sorted. Whatever has samples but no manifest.json is warned about."""
    folders = []
    for folder, has_manifest in walk(root, skip):
        if has_manifest:
            folders.append(folder)
        else:
            skip(f"{folder}: no manifest.json")
    return sorted(folders)


def walk(root: str | Path, warn: Callable[[str], None]) -> Iterable[tuple[Path, bool]]:
    """Yield the folders at or below `root` with a manifest or samples, and whether there is a manifest.

    Hidden folders and links to folders are left out. `warn` gets a line for a folder that cannot be read.
    """

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            warn(f"{error.filename}: {error.strerror}")

    for folder, below, files in os.walk(root, onerror=unreadable):
        below[:] = sorted(name for name in below if not name.startswith("."))
        has_manifest = "manifest.json" in files
        if has_manifest or any(name.startswith("samples") and name.endswith(".jsonl") for name in files):
            yield Path(folder), has_manifest
