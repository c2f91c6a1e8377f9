"""The state of one run folder: what its files say, and whether a living process holds it."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvbench.store.files import read_records
from kvbench.store.locks import writers
from kvbench.store.read import read_manifest
from kvbench.store.shards import merged_status, sample_files, status_files, statuses

STATES = (
    "done",
    "running",  # a living process writes it
    "waiting",  # no folder yet; other runs of its plan are running
    "missing",  # no folder yet
    "partial",  # ended well, samples were limited; or a shard's part
    "preempted",  # ended by a signal
    "stopped",  # was running, but no process holds its lock: killed
    "failed",
    "damaged",  # a file cannot be read
)
FRESH = 600  # seconds: where locks cannot be asked, a run that wrote something since then counts as running
_LINE = re.compile(rb'\{"id": ("(?:[^"\\]|\\.)*"), .*\}')


@dataclass
class RunState:
    """How a run stands; `last` is when it last wrote something (seconds since the epoch), `shards` are its writers."""

    folder: Path
    state: str
    recorded: int = 0
    total: int | None = None
    last: float | None = None
    error: str | None = None
    slurm: str | None = None
    note: str | None = None
    shards: dict[str, str] = field(default_factory=dict)


def look(folder: Path) -> RunState:
    """The state of a run folder, also while it is being written; nothing is raised for a damaged one."""
    try:
        if not (folder / "manifest.json").is_file():
            if any(file.stat().st_size for file in sample_files(folder)):
                return RunState(folder, "damaged", error="samples but no manifest.json")
            return RunState(folder, "missing")
        said = _settled_statuses(folder)
        recorded, total = len(recorded_ids(folder)), int(read_manifest(folder)["num_samples"])
        files = [*sample_files(folder), *status_files(folder).values(), folder / "status.json"]
        last = max((file.stat().st_mtime for file in files if file.exists()), default=None)
    except (ValueError, OSError) as error:
        return RunState(folder, "damaged", error=" ".join(str(error).replace(f"{folder}/", "").split()))
    run = RunState(folder, "", recorded, total, last)
    made = merged_status({name: one for name, one, _ in said}, recorded, total)
    run.error = str(made["error"]) if made.get("error") else None
    run.slurm = str(made["slurm"]) if made.get("slurm") else None
    run.shards = {name: state for name, _, state in said if name}
    if made.get("status") == "done" and recorded >= total:
        run.state = "done"
        return run
    states = [state for _, _, state in said] or ["stopped"]
    run.state = next((s for s in ("failed", "running", "stopped", "preempted") if s in states), "partial")
    if made.get("status") == "done":
        run.state, run.note = "partial", "samples of a done run are gone"
    elif any(one.get("unsure") for _, one, _ in said):
        run.note = "judged by its time stamps; its lock cannot be asked"
    elif len(said) > 1 or run.shards:
        run.note = ", ".join(f"{name or 'whole'} {state}" for name, _, state in said)
    elif run.state == "stopped":
        run.note = "killed; no process holds it"
    return run


def _settled_statuses(folder: Path) -> list[tuple[str, dict[str, Any], str]]:
    """Writer, what it says, its state. "running" is believed of those that hold a lock."""
    for last_try in (False, True):
        said, alive = statuses(folder), writers(folder)
        dead = [name for name, one in said.items() if one.get("status") == "running" and name not in (alive or [])]
        if not dead or alive is None or last_try:
            break  # else it may have ended well between the two looks
    if alive is None:
        return [(name, one | {"unsure": name in dead}, _by_time(folder, one)) for name, one in said.items()]
    found = [(name, one, "stopped" if name in dead else str(one.get("status"))) for name, one in said.items()]
    return found + [(name, {"status": "running"}, "running") for name in alive if name not in said]


def _by_time(folder: Path, one: dict[str, Any]) -> str:
    if one.get("status") != "running":
        return str(one.get("status"))
    files = [*sample_files(folder), *status_files(folder).values(), folder / "status.json"]
    newest = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
    return "running" if time.time() - newest < FRESH else "stopped"


def recorded_ids(folder: Path) -> set[str]:
    """The ids on file. Lines are not parsed as long as they look as the store writes them."""
    found: set[bytes] = set()
    for file in sample_files(folder):
        *lines, _ = file.read_bytes().split(b"\n")
        matches = [_LINE.fullmatch(line) for line in lines]
        if all(matches):
            found |= {match[1] for match in matches if match is not None}
        else:
            found |= {json.dumps(record["id"]).encode() for record in read_records(file)[0]}
    return {json.loads(name) for name in found}
