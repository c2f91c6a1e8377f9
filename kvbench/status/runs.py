"""The state of one run folder: what its files say, and whether a living process holds it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvbench.store import Manifest, Status
from kvbench.store.environment import is_mixed
from kvbench.store.locks import writers
from kvbench.store.manifest import read_manifest
from kvbench.store.places import placed
from kvbench.store.progress import Progress, judge, recorded_ids
from kvbench.store.refusals import read_refusal
from kvbench.store.shards import merged_status, sample_files, status_files, statuses

STATES = (
    "done",
    "limited",  # ended well with all samples that its limit asked for
    "running",  # a living process writes it
    "waiting",  # no folder yet; other runs of its plan are running
    "missing",  # no folder yet
    "partial",  # ended well, but samples are missing: a larger limit is asked for now, or this is a shard's part
    "preempted",  # ended by a signal
    "stopped",  # was running, but no process holds its lock: killed, or the disk was too full for the last status
    "failed",
    "refused",  # what was asked for last cannot be computed
    "damaged",  # a file cannot be read
)
COMPLETE = ("done", "limited")
FRESH = 600  # seconds: where locks cannot be asked, a run that wrote something since then counts as running


@dataclass
class RunState:
    """The state of a run.

    Attributes:
        folder: of the run.
        state: one of `STATES`.
        progress: how many samples are on file; None where that cannot be read.
        last: when it last wrote something, in seconds since the epoch.
        shards: its writers and their states.
        hash: of its identity; None where that cannot be read.
    """

    folder: Path
    state: str
    progress: Progress | None = None
    last: float | None = None
    error: str | None = None
    slurm: str | None = None
    note: str | None = None
    shards: dict[str, str] = field(default_factory=dict)
    hash: str | None = None

    @property
    def recorded(self) -> int:
        """Samples on file."""
        return 0 if self.progress is None else self.progress.recorded

    @property
    def total(self) -> int | None:
        """Samples of the benchmark; None where that cannot be read."""
        return None if self.progress is None else self.progress.total


@dataclass
class _Writer:
    """The status of a writer, and its state: only a writer that holds a lock is running."""

    status: Status
    state: str
    unsure: bool = False


def look(folder: Path) -> RunState:
    """Return the state of a run folder, also while it is being written. A damaged one is a state, not an error."""
    try:
        if not os.path.lexists(folder / "manifest.json"):
            if any(file.stat().st_size for file in sample_files(folder)):
                return RunState(folder, "damaged", error="samples but no manifest.json")
            return RunState(folder, "missing")
        by_shard = _writers(folder)
        manifest = placed(folder, read_manifest(folder))
        recorded, total = len(recorded_ids(folder)), manifest["num_samples"]
        last = _last_written(folder)
    except (ValueError, OSError) as error:
        return RunState(folder, "damaged", error=" ".join(str(error).replace(f"{folder}/", "").split()))
    status = merged_status({name: writer.status for name, writer in by_shard.items()}, recorded, total)
    progress = judge(status, recorded, total)
    run = RunState(folder, "", progress, last, status.get("error"), status.get("slurm"), hash=manifest["hash"])
    run.shards = {name: writer.state for name, writer in by_shard.items() if name}
    run.state, run.note = _state(run, progress, by_shard)
    if is_mixed([manifest]):
        run.note = "; ".join(filter(None, (run.note, _continued(manifest))))
    return run


def refused(run: RunState, limit: int | None) -> RunState:
    """Return the state of a run of which its plan asks for `limit` samples: `refused` if that was refused last."""
    if run.state in (*COMPLETE, "running", "damaged"):
        return run
    try:
        refusal = read_refusal(run.folder)
    except ValueError as error:
        return replace(run, state="damaged", error=str(error).replace(f"{run.folder.parents[3]}/", ""))
    if refusal is None or refusal["limit"] != limit:
        return run
    return replace(run, state="refused", error=refusal["reason"], note=None)


def _continued(manifest: Manifest) -> str:
    """Return after how many samples a run went on with other versions or on other hardware."""
    counts = ", ".join(str(entry["recorded"]) for entry in manifest["continued_with"])
    return f"other versions or hardware after {counts} samples"


def _state(run: RunState, progress: Progress, by_shard: Mapping[str, _Writer]) -> tuple[str, str | None]:
    """Return the state of a run, and a note on it."""
    if progress.is_done:
        return "done", None
    states = [writer.state for writer in by_shard.values()] or ["stopped"]
    state = next((state for state in ("failed", "running", "stopped", "preempted") if state in states), "partial")
    if progress.is_damaged:
        return "partial", f"{progress.settled - progress.recorded} samples of a finished run are gone"
    if state == "partial" and progress.is_limited:
        return "limited", f"limit={progress.settled}"
    if any(writer.unsure for writer in by_shard.values()):
        return state, "judged by its time stamps; its lock cannot be asked"
    if len(by_shard) > 1 or run.shards:
        return state, ", ".join(f"{name or 'whole'} {writer.state}" for name, writer in by_shard.items())
    return state, "no process holds it: killed, or its disk was full" if state == "stopped" else None


def _writers(folder: Path) -> dict[str, _Writer]:
    """Return the writers of a run, by shard."""
    for last_try in (False, True):
        written, alive = statuses(folder), writers(folder)
        running = [name for name, status in written.items() if status.get("status") == "running"]
        dead = [name for name in running if name not in (alive or ())]
        if not dead or alive is None or last_try:
            break  # else it may have ended well between the two looks
    if alive is None:
        return {name: _Writer(status, _by_time(folder, status), name in dead) for name, status in written.items()}
    by_shard = {
        name: _Writer(status, "stopped" if name in dead else str(status.get("status")))
        for name, status in written.items()
    }
    return by_shard | {name: _Writer({"status": "running"}, "running") for name in alive if name not in written}


def _by_time(folder: Path, status: Status) -> str:
    state = status.get("status")
    if state != "running":
        return str(state)
    return "running" if time.time() - (_last_written(folder) or 0.0) < FRESH else "stopped"


def _last_written(folder: Path) -> float | None:
    files = [*sample_files(folder), *status_files(folder).values(), folder / "status.json"]
    return max((file.stat().st_mtime for file in files if file.exists()), default=None)
