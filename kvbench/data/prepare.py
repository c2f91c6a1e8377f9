"""Preparation of a folder with the files of a bundle: fetch or copy, check, put in place, write the inventory last."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvbench.data import checks, fetch, inventory, longbench
from kvbench.data.sources import Source

STAGING = ".download"  # files arrive here; after a failure the next call continues with them


@dataclass
class Preparation:
    """One call for one folder, with its results.

    old: the inventory before. new: names of files that were put in place or replaced. files: all files that are there
    and right, with their entries in the inventory. missing: the known files that are not. problems: one line each, with
    the remedy.
    """

    folder: Path
    origin: Path | None
    force: bool
    say: Callable[[str], None]
    old: dict[str, Any]
    new: list[str] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def staging(self) -> Path:
        """The folder where files arrive."""
        return self.folder / STAGING


def prepare(
    bundle: str,
    sources: Sequence[Source],
    folder: Path,
    origin: Path | None = None,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> Preparation:
    """Update a folder from the network or from the folder `origin`.

    Files that are there and right stay. A source that fails does not keep the others from being prepared. `force`
    gets everything again; with `origin` it also takes files that differ from a checksum known in advance.
    Raises ValueError when the folder cannot be used at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if origin is not None and origin.resolve() == folder.resolve():
        raise ValueError(f"--from {origin}: this is the folder to fill; leave --from out, or give another one")
    with _alone(folder, say):
        old = inventory.read(folder)
        job = Preparation(folder, origin, force, say, old)
        if force:
            fetch.discard(job.staging)
        for source in sources:
            job.files |= _kept(job, source)
            names = _bring(job, source)
            _install(job, source, names)
        known = [name for source in sources for name in source.members]
        job.missing = sorted(set(known) - set(job.files))
        if origin is not None and not job.files:
            job.problems.append(f"--from {origin}: holds no file of {bundle}, such as {Path(known[-1]).name}")
        value = {"bundle": bundle, "files": job.files, "missing": job.missing}
        if job.files and value != inventory.read(folder):  # another process may have removed it meanwhile
            inventory.write(folder, value)
        if not job.problems:
            fetch.discard(job.staging)
    return job


def _kept(job: Preparation, source: Source) -> dict[str, dict[str, Any]]:
    """Return the entries of files that are in place. A file without an old entry must pass the checks of new ones."""
    entries = {}
    recorded = job.old.get("files", {})
    for name in source.members:
        if name in recorded and (job.folder / name).is_file():
            if _as_recorded(job, name, recorded[name]):
                entries[name] = recorded[name]
            else:
                job.say(f"  {name} was changed after it was prepared: deleted, will be fetched again")
                (job.folder / name).unlink()
        elif (job.folder / name).is_file() and not source.combined:
            entry = _entry(job.folder / name, source, name)
            if entry["checked"] != "differs" and not _wrong(name, job.folder / name):
                entries[name] = entry
    return entries


def _as_recorded(job: Preparation, name: str, entry: dict[str, Any]) -> bool:
    """Return True if a file is unchanged: by size, or by checksum when files are read anyway."""
    if not (job.force or job.origin):
        return inventory.same_size(job.folder, name, entry)
    return inventory.sha256(job.folder / name) == entry.get("sha256")


def _bring(job: Preparation, source: Source) -> list[str]:
    """Fetch or copy the wanted files of a source into the staging folder; return the names that are there then."""
    wanted = [name for name in source.members if job.force or name not in job.files]
    if source.kind == "hub" and wanted:
        wanted = list(source.members)  # the archive also replaces samples that were copied before
    try:
        if job.origin is not None:
            _copy(job, source, job.origin)
        elif wanted:
            job.say(f"  fetching {_title(source, wanted)}")
            fetch.fetch(source, wanted, job.staging)
    except (fetch.Unavailable, OSError) as error:
        job.problems.append(f"{_title(source, wanted)}: {error}; {source.remedy}")
        return []
    return [name for name in source.members if (job.staging / name).is_file()]


def _copy(job: Preparation, source: Source, origin: Path) -> None:
    local = {name: longbench.local_file(source, origin, name) for name in source.members}
    for name, path in local.items():
        # the same file again, by checksum, is not copied
        if path and (job.force or job.files.get(name, {}).get("sha256") != inventory.sha256(path)):
            fetch.copy(path, job.staging / name)
    absent = {name: source.members[name] for name, path in local.items() if path is None}
    if source.kind == "hub" and absent:
        archive = origin / source.addresses[0].split()[1]
        if archive.is_file():
            fetch.unpack(archive, absent, job.staging)
            absent = {}
    if lacking := [name for name in absent if name not in job.files and source.needed]:
        raise fetch.Unavailable(f"not in {origin}: {', '.join(lacking[:3])}{' ...' if len(lacking) > 3 else ''}")


def _install(job: Preparation, source: Source, names: list[str]) -> None:
    """Check staged files and move the good ones into place; each bad one is a problem."""
    if names and source.combined:
        paths = {name: job.staging / name if name in names else job.folder / name for name in source.members}
        total = combined({name: inventory.sha256(path) for name, path in paths.items() if path.is_file()})
        if total != source.combined and not (job.force and job.origin):
            fetch.discard(job.staging)
            job.problems.append(f"{_title(source, names)}: not the known files, by checksum; {source.remedy}")
            return
    for name in names:
        staged, shown = job.staging / name, name
        if job.origin is not None:
            shown = str(longbench.local_file(source, job.origin, name) or name)
        entry = _entry(staged, source, name)
        wrong = _wrong(name, staged)
        if not wrong and entry["checked"] == "differs" and not (job.origin and (job.force or not source.strict)):
            wrong = f"{staged}: sha256 is {entry['sha256'][:12]}..., not {source.sha256[name][:12]}...: another version"
            wrong += "; --force takes it as it is" if job.origin else f"; {source.remedy}"
        if wrong:
            staged.unlink()
            job.problems.append(wrong.replace(str(staged), shown))
            continue
        if job.files.get(name, {}).get("sha256") == entry["sha256"]:
            staged.unlink()
            continue
        if name in job.old.get("files", {}):
            (job.folder / inventory.NAME).unlink(missing_ok=True)  # until the end it is not true
        (job.folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, job.folder / name)
        job.files[name] = entry
        job.new.append(name)


def combined(checksums: dict[str, str]) -> str:
    """Return one checksum for many files: {name: sha256}, of which the last part of each name counts."""
    lines = sorted((Path(name).name, value) for name, value in checksums.items())
    return hashlib.sha256("".join(f"{value}  {name}\n" for name, value in lines).encode()).hexdigest()


def _entry(path: Path, source: Source, name: str) -> dict[str, Any]:
    """Return a file's entry in the inventory. checked: known, recorded (no checksum was known before) or differs."""
    checksum = inventory.sha256(path)
    checked = "known" if source.combined else "recorded"
    if name in source.sha256:
        checked = "known" if checksum == source.sha256[name] else "differs"
    return {"sha256": checksum, "bytes": path.stat().st_size, "checked": checked}


def _wrong(name: str, path: Path) -> str:
    try:
        checks.content(name, path)
    except ValueError as error:
        return str(error)
    return ""


def _title(source: Source, names: Sequence[str]) -> str:
    if source.kind != "url":
        return source.addresses[0].replace(" ", ": ")
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names) or source.addresses[0]


@contextmanager
def _alone(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Allow one preparation of a folder at a time; a second one waits, and has nothing left to do."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"  another process is preparing {folder}; waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
