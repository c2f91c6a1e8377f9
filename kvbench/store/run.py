"""A run folder open for writing: identity checked, locked, appended to one synced line at a time."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import yaml
from omegaconf import DictConfig, OmegaConf

from kvbench.common import clock
from kvbench.common.files import TOO_MANY, too_many_files, write_atomic
from kvbench.common.line_file import LineFile
from kvbench.store import locks
from kvbench.store.files import as_record, read_lines
from kvbench.store.identity import identity_hash, plain, scrub, scrub_text, without_paths, without_places
from kvbench.store.kept import KeptTokens, kept_line
from kvbench.store.manifest import go_on, take_up, write_manifest
from kvbench.store.schema import SCHEMA, STATUSES, Environment, Manifest, RecordStatus, RunStatus
from kvbench.store.shards import (
    Shard,
    final_status,
    merged,
    normal,
    read_status,
    sample_files,
    status_files,
    suffix,
)
from kvbench.store.validate import check

log = logging.getLogger(__name__)

_RECORD_STATUSES = get_args(RecordStatus)
_LABELS = ("benchmark", "model", "method", "budget")
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]*")


def run_folder(root: str | Path, label: Mapping[str, str], identity: Mapping[str, Any]) -> Path:
    """Return where the run of this label and identity lives below `root`, whether or not it exists yet.

    Raises ValueError for a label that is no folder name.
    """
    for name in _LABELS:
        if not _SAFE_NAME.fullmatch(str(label.get(name, ""))):
            raise ValueError(f"label {name}={label.get(name)!r}: use letters, digits and _.+=- only")
    folder = f"{label['method']}-b{label['budget']}-{identity_hash(identity)[:8]}"
    return Path(root).absolute() / str(label["benchmark"]) / str(label["model"]) / folder


class Run:
    """One run folder, or one shard of it, written by this process alone. Made by `Run.open`; a context manager.

    Leaving the `with` block by an exception sets the status failed (preempted for what is no `Exception`, such as
    KeyboardInterrupt and SystemExit), unless a final status was set before.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        here: Environment,
        lock: locks.Lock,
        shard: Shard,
        retry: Collection[str],
        info: Mapping[str, Any],
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._here = here  # what this process records with
        self._lock = lock
        self._shard = shard
        self._info = plain(dict(info), "status")
        self._settled = self._has_appended = False
        self._done = {name for name, record in merged(sample_files(path)).items() if record["status"] not in retry}
        self._file = path / f"samples{suffix(shard)}.jsonl"
        _, end, torn = read_lines(self._file, as_record)
        self._lines = LineFile(self._file, end, torn)
        self._kept: LineFile | None = None  # opened for the first kept tokens

    @classmethod
    def open(
        cls,
        root: str | Path,
        *,
        label: Mapping[str, str],
        identity: Mapping[str, Any],
        config: Mapping[str, Any] | DictConfig,
        headline: str,
        num_samples: int,
        versions: Mapping[str, str],
        device: str,
        hardware: Mapping[str, str | int] | None = None,
        part: Mapping[str, Any] | None = None,
        scoring: Mapping[str, Any] | None = None,
        retry: Collection[str] = (),
        shard: tuple[int, int] | None = None,
        info: Mapping[str, Any] | None = None,
        wait: bool = True,
        timeout: float | None = None,
    ) -> Run:
        """Create the run's folder below `root`, or continue the run that is there, and set it running.

        `part` says where the run stands in a suite, `scoring` how its answers are scored, `hardware` what computes it:
        facts with a `name`, which every record repeats. None is part of its identity. A run that is done stays done.
        `label` names benchmark, model, method and budget (the folder names).
        `retry`: statuses of samples that are to be computed again. `shard` (i, n): other processes may write the
        other shards of n at the same time; which samples it stands for is the caller's choice. `info` is put into
        every status of this opening, e.g. the number of a Slurm job. When another process holds the run: wait
        (at most `timeout` seconds), or refuse with `wait=False`. A caller that opens several runs should open
        them sorted, so that two callers never wait for each other. Raises ValueError, also for a root that
        cannot be written and for a folder of another identity whose hash has the same first 8 digits.
        """
        path, digest, shard = run_folder(root, label, identity), identity_hash(identity), normal(shard)
        manifest: Manifest = {
            "schema": SCHEMA,
            "hash": digest,
            "identity": scrub(plain(dict(identity), "identity")),
            "label": {
                "benchmark": str(label["benchmark"]),
                "model": str(label["model"]),
                "method": str(label["method"]),
                "budget": str(label["budget"]),
            },
            "headline": headline,
            "num_samples": num_samples,
            "versions": plain(dict(versions), "versions"),
            "device": device,
            "part": plain(dict(part), "part") if part is not None else None,
            "scoring": plain(dict(scoring or {}), "scoring"),
            "created": clock.now(),
        }
        if hardware is not None:
            manifest["hardware"] = plain(dict(hardware), "hardware")
        check(manifest, Manifest)  # what cannot be read again must not be written
        try:
            path.mkdir(parents=True, exist_ok=True)
            with locks.opening(path, shard, wait, timeout) as lock:
                run = cls(path, _settle(path, manifest, config), manifest, lock, shard, retry, info or {})
                try:
                    run._begin()
                except BaseException:
                    run.close()
                    raise
        except OSError as error:
            if error.errno in TOO_MANY:
                raise ValueError(too_many_files()) from None
            reason = error.strerror or error  # not "paths.outputs={root}": root may be a folder of it
            raise ValueError(f"paths.outputs: cannot write {error.filename or path} ({reason})") from None
        return run

    def _begin(self) -> None:
        """Set the run running, unless it is done, and delete the status files of a different sharding."""
        is_done = read_status(self.path).get("status") == "done" and self._has_all()
        if not is_done:
            self.set_status("running")
        elsewhere = "" if self._shard is None else f"of{self._shard[1]}"
        stale = [file for name, file in status_files(self.path).items() if not (elsewhere and name.endswith(elsewhere))]
        if self._shard is None:
            stale += self.path.glob(".*.tmp")  # of killed writers; nobody else is at work
        elif not is_done:
            stale.append(self.path / "status.json")
        for file in stale:
            file.unlink(missing_ok=True)

    def _has_all(self) -> bool:
        return len(merged(sample_files(self.path))) >= self.manifest["num_samples"]

    def done_ids(self) -> set[str]:
        """Return the ids that need no work: recorded as ok, or with a status that is not in `retry`."""
        return set(self._done)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record as one line; it is on disk when this returns.

        Raises ValueError for an id already recorded, for what JSON cannot hold and for what is not a record, and
        OSError that names the file when the line cannot be written; the file then ends with its last whole line, as
        before. Absolute paths and secrets are cut out of `error`.
        """
        sample = record.get("id")
        if not isinstance(sample, str) or record.get("status") not in _RECORD_STATUSES:
            raise ValueError(f"{self.path}: a record needs an id and a status: {', '.join(_RECORD_STATUSES)}")
        if sample in self._done:
            raise ValueError(f"{self.path}: the sample {sample} is already recorded")
        if not self._lines.is_open:
            raise ValueError(f"{self.path}: the run is closed")
        content = plain(dict(record), sample)
        if "hardware" in self._here:
            content["hardware"] = self._here["hardware"]["name"]
        if isinstance(content.get("error"), str):
            content["error"] = without_paths(scrub_text(content["error"]))
        line = json.dumps(as_record(content)).encode() + b"\n"
        try:
            if self._has_appended:
                self._lines.append(line)
            else:
                self._append_first(line)
        except OSError as error:
            reason = f"{error.strerror}; the sample {sample} is not recorded"
            raise OSError(error.errno, reason, error.filename) from None
        self._done.add(sample)

    def _append_first(self, line: bytes) -> None:
        """Append the first line of this process. Nobody opens the folder meanwhile, or the manifest could change."""
        with locks.alone(self.path):
            self.manifest = go_on(self.path, self._here)
            self._lines.append(line)
        self._has_appended = True

    def append_kept(self, kept: KeptTokens) -> None:
        """Write which tokens of a sample are kept, see `kvbench.store.kept`. Raises OSError as `append`."""
        if self._kept is None:
            file = self.path / f"kept{suffix(self._shard)}.jsonl"
            _, end, torn = read_lines(file, lambda value: value)
            self._kept = LineFile(file, end, torn)
        self._kept.append(kept_line(kept))

    def set_status(self, status: RunStatus, **info: Any) -> None:
        """Replace this writer's status file by {"status", "time", "recorded": finished samples on file, **info}."""
        self._write_status(self._shard, status, **info)

    def _write_status(self, shard: Shard, status: RunStatus, **info: Any) -> None:
        if status not in STATUSES:
            raise ValueError(f"status {status!r}: one of {', '.join(STATUSES)}")
        head = {"status": status, "time": clock.now(), "recorded": len(self._done)}
        if isinstance(info.get("error"), str):
            info["error"] = without_paths(scrub_text(info["error"]))
        content = head | self._info | plain(info, "status")
        write_atomic(self.path / f"status{suffix(shard)}.json", json.dumps(content, indent=2) + "\n")
        self._settled = status != "running"

    def finish(self, limit: int | None = None) -> RunStatus:
        """Set and return the final status after the last sample of this writer: done if the run has all, else partial.

        `limit` is how many of the first samples were asked for. What other shards have recorded by now counts, so the
        last one to finish sets the run done, in status.json.
        """
        total = self.manifest["num_samples"]
        self._done |= merged(sample_files(self.path)).keys()
        status = final_status(len(self._done), total)
        for shard in dict.fromkeys([self._shard, None if status == "done" else self._shard]):
            self._write_status(shard, status, samples=total, limit=limit)
        return status

    def close(self) -> None:
        """Release the folder; harmless when repeated."""
        self._lines.close()
        if self._kept is not None:
            self._kept.close()
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is not None and not self._settled:
                status: RunStatus = "failed" if isinstance(error, Exception) else "preempted"
                self.set_status(status, error=f"{type(error).__name__}: {error}")
        except OSError as second:  # a full disk; the error on its way out matters more
            log.error("%s: could not write the status %s (%s)", self.path, status, second.strerror)
        finally:
            self.close()


def _settle(path: Path, manifest: Manifest, config: Mapping[str, Any] | DictConfig) -> Manifest:
    """Return the manifest on file after checking it; a new folder gets config.yaml, then its manifest."""
    if os.path.lexists(path / "manifest.json"):
        return take_up(path, manifest)
    if merged(sample_files(path)):
        raise ValueError(f"{path}: has samples but no manifest.json; move the folder away to compute the run again")
    content = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    text = yaml.safe_dump(without_places(scrub(content)), sort_keys=False, allow_unicode=True)
    write_atomic(path / "config.yaml", text)
    write_manifest(path, manifest)
    return manifest
