"""A run folder open for writing: identity checked, locked, appended to one synced line at a time."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from kvbench.store.files import read_json, read_records, read_status, sync_folder, write_atomic
from kvbench.store.identity import identity_hash, plain, scrub

log = logging.getLogger(__name__)

SCHEMA = 1
STATUSES = ("running", "done", "partial", "failed", "preempted")  # partial: ended well, samples were limited
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
    """One run folder, written by this process alone. Made by `Run.open`; a context manager.

    Leaving the `with` block by an exception sets the status failed (preempted for KeyboardInterrupt), unless
    a final status was set before.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], lock: FileLock, retry_oom: bool) -> None:
        self.path = path
        self.manifest = manifest
        self._lock = lock
        self._settled = False
        records, self._end, torn = read_records(path / "samples.jsonl")
        status_of = {record["id"]: record.get("status") for record in records}
        self._done = {name for name, status in status_of.items() if not (retry_oom and status == "oom")}
        self._fd: int | None = os.open(path / "samples.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if torn:
            log.warning("%s: dropped a torn last line of %d bytes from samples.jsonl", path, torn)
            os.ftruncate(self._fd, self._end)
            os.fsync(self._fd)
        sync_folder(path)

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
        part: Mapping[str, Any] | None = None,
        scoring: Mapping[str, Any] | None = None,
        retry_oom: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> Run:
        """Create the run's folder below `root`, or continue the run that is there, and set it running.

        `part` says where the run stands in a suite, `scoring` how its answers are scored; neither is part of its
        identity. A run that is done stays done. `label` names benchmark, model, method and budget (the folder names).
        `retry_oom` runs the samples again that ended out of memory. When another process holds the run: wait
        (at most `timeout` seconds), or refuse with `wait=False`. A caller that opens several runs should open
        them sorted, so that two callers never wait for each other. Raises ValueError, also for a root that
        cannot be written and for a folder of another identity whose hash has the same first 8 digits.
        """
        path, digest = run_folder(root, label, identity), identity_hash(identity)
        manifest = {
            "schema": SCHEMA,
            "hash": digest,
            "identity": plain(dict(identity), "identity"),
            "label": {name: str(label[name]) for name in _LABELS},
            "headline": headline,
            "num_samples": num_samples,
            "versions": plain(dict(versions), "versions"),
            "device": device,
            "part": plain(dict(part), "part") if part is not None else None,
            "scoring": plain(dict(scoring or {}), "scoring"),
            "created": _now(),
        }
        lock = FileLock(path / ".lock")
        try:
            path.mkdir(parents=True, exist_ok=True)
            _acquire(lock, path, wait, timeout)
            run = cls(path, _settle(path, manifest, config), lock, retry_oom)
            if read_status(path).get("status") != "done":
                run.set_status("running")
        except OSError as error:
            lock.release()
            reason = error.strerror or error
            raise ValueError(f"paths.outputs={root}: cannot write there ({reason})") from None
        except BaseException:
            lock.release()
            raise
        return run

    def done_ids(self) -> set[str]:
        """Return the ids that need no work: recorded as ok, or as oom unless opened with `retry_oom`."""
        return set(self._done)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record as one line; it is on disk when this returns.

        Raises ValueError for an id already recorded and for what JSON cannot hold, and OSError naming the
        folder when the line cannot be written; the file then ends with its last whole line, as before.
        """
        sample = record.get("id")
        if not isinstance(sample, str) or record.get("status") not in ("ok", "oom"):
            raise ValueError(f"{self.path}: a record needs an id and the status ok or oom")
        if sample in self._done:
            raise ValueError(f"{self.path}: the sample {sample} is already recorded")
        if self._fd is None:
            raise ValueError(f"{self.path}: the run is closed")
        line = json.dumps(plain(dict(record), sample)).encode() + b"\n"
        try:
            rest = line
            while rest:  # a full disk takes a part first and refuses only the remainder
                rest = rest[os.write(self._fd, rest) :]
            os.fsync(self._fd)
        except OSError as error:
            self._roll_back()
            reason = f"{self.path}: cannot write the sample {sample} ({error.strerror})"
            raise OSError(error.errno or errno.EIO, reason) from None
        except BaseException:  # an interrupt between two parts
            self._roll_back()
            raise
        self._end += len(line)
        self._done.add(sample)

    def _roll_back(self) -> None:
        """Cut a half-written line off. If that fails too, take no more: they would follow a torn line."""
        assert self._fd is not None
        try:
            os.ftruncate(self._fd, self._end)
        except OSError:
            os.close(self._fd)
            self._fd = None
            log.error("%s: could not cut off a torn last line; the next start will", self.path)

    def set_status(self, status: str, **info: Any) -> None:
        """Replace status.json by {"status", "time", "recorded": finished samples on file, **info}."""
        if status not in STATUSES:
            raise ValueError(f"status {status!r}: one of {', '.join(STATUSES)}")
        content = {"status": status, "time": _now(), "recorded": len(self._done), **plain(info, "status")}
        write_atomic(self.path / "status.json", json.dumps(content, indent=2) + "\n")
        self._settled = status != "running"

    def close(self) -> None:
        """Release the folder; harmless when repeated."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is not None and not self._settled:
                status = "preempted" if isinstance(error, KeyboardInterrupt) else "failed"
                self.set_status(status, error=f"{type(error).__name__}: {error}")
        except OSError as second:  # a full disk; the error on its way out matters more
            log.error("%s: could not write status.json (%s)", self.path, second)
        finally:
            self.close()


def _acquire(lock: FileLock, path: Path, wait: bool, timeout: float | None) -> None:
    try:
        lock.acquire(timeout=0)
        return
    except Timeout:
        if not wait:
            raise ValueError(f"{path}: another process is writing this run") from None
    log.warning("waiting for another process that is writing %s", path)
    try:
        lock.acquire(timeout=-1 if timeout is None else timeout)
    except Timeout:
        raise ValueError(f"{path}: another process still writes this run after {timeout} s") from None
    except RuntimeError:  # filelock saw that this very process holds it: waiting would never end
        raise ValueError(f"{path}: this process is already writing this run") from None


def _settle(path: Path, manifest: dict[str, Any], config: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """Return the manifest on file after checking it; a new folder gets config.yaml, then its manifest."""
    if (path / "manifest.json").exists():
        found = read_json(path / "manifest.json")
        if found.get("hash") != manifest["hash"]:
            raise ValueError(f"{path}: holds a run whose hash only begins alike; choose another paths.outputs")
        if found.get("versions") != manifest["versions"]:
            was, now = found.get("versions"), manifest["versions"]
            log.warning("%s: begun with versions %s, continued with %s", path, was, now)
        return found
    if read_records(path / "samples.jsonl")[0]:
        raise ValueError(f"{path}: has samples but no manifest.json; move the folder away to run anew")
    content = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    write_atomic(path / "config.yaml", yaml.safe_dump(scrub(content), sort_keys=False, allow_unicode=True))
    write_atomic(path / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return manifest


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
