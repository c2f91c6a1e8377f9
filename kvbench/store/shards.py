"""Several writers of one run: each shard has its own files, and readers see them as one.

Appending to one file from several hosts is not atomic on network file systems. So each writer has a file of its own:
samples.jsonl and status.json, or samples-<i>of<n>.jsonl and status-<i>of<n>.json for shard i of n.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from kvbench.store.files import DELETE, read_json, read_records
from kvbench.store.schema import Record, RunStatus, Status

Shard = tuple[int, int] | None  # (i, n): the i-th of n parts of the samples, counted from 1; None: all samples

_SAMPLES = re.compile(r"samples(?:-([0-9]{1,9})of([0-9]{1,9}))?\.jsonl")
_STATUS = re.compile(r"status-([0-9]{1,9}of[0-9]{1,9})\.json")


def normal(shard: Shard) -> Shard:
    """Return the shard, with None for the only one of one. Raises ValueError for a shard that does not exist."""
    if shard is None or shard == (1, 1):
        return None
    index, number = shard
    if not 1 <= index <= number:
        raise ValueError(f"shard={index}/{number}: must be one of 1/{number} to {number}/{number}")
    return index, number


def suffix(shard: Shard) -> str:
    """Return what a shard's files have in their names: "-1of4"; "" for all samples."""
    return "" if shard is None else f"-{shard[0]}of{shard[1]}"


def sample_files(folder: Path) -> list[Path]:
    """Return the files with records: samples.jsonl first, then the shards in their order."""
    files = [(match, file) for file in folder.glob("samples*.jsonl") if (match := _SAMPLES.fullmatch(file.name))]
    return [file for _, file in sorted(files, key=lambda pair: (int(pair[0][2] or 0), int(pair[0][1] or 0)))]


def status_files(folder: Path) -> dict[str, Path]:
    """Return the shards' status files by shard, such as {"1of4": ...}."""
    files = [(match, file) for file in folder.glob("status-*.json") if (match := _STATUS.fullmatch(file.name))]
    return {match[1]: file for match, file in sorted(files, key=lambda pair: pair[1])}


def merged(files: Iterable[Path], bulky: bool = True) -> dict[str, Record]:
    """Return one record per id: an answer wins over a failure, and of two alike the later one.

    Torn last lines are skipped. `bulky` as for `kvbench.store.files.read_records`. Raises ValueError with file and
    line for anything else that is not a record.
    """
    by_id: dict[str, Record] = {}
    for file in files:
        in_file: dict[str, Record] = {}
        for record in read_records(file, bulky):
            old = in_file.get(record["id"])
            if old is None or _is_answered(record) or not _is_answered(old):
                in_file[record["id"]] = record
        for name, record in in_file.items():
            if name not in by_id or _rank(record) >= _rank(by_id[name]):
                by_id[name] = record
    return by_id


def _is_answered(record: Record) -> bool:
    return record["status"] == "ok"


def _rank(record: Record) -> tuple[bool, str]:
    """Return the rank of a record among those of one id in other files, by the clocks of their hosts."""
    return _is_answered(record), record.get("time", "")


def read_status(folder: Path, shard: Shard = None) -> Status:
    """Return a writer's status; {} if none was written yet."""
    try:
        return read_json(folder / f"status{suffix(shard)}.json", Status, DELETE)
    except FileNotFoundError:
        return {}


def statuses(folder: Path) -> dict[str, Status]:
    """Return the status of every writer of a run: status.json under "", a shard's under its name, such as "1of4"."""
    whole = read_status(folder)
    every = {"": whole} if whole else {}
    for name, file in status_files(folder).items():
        try:
            every[name] = read_json(file, Status, DELETE)
        except FileNotFoundError:  # a writer of another division has just deleted it
            continue
    return every


def final_status(recorded: int, total: int) -> RunStatus:
    """Return the status of a run that ended well."""
    return "done" if recorded >= total else "partial"


def merged_status(every: Mapping[str, Status], recorded: int, total: int) -> Status:
    """Return the status of a run with `recorded` of `total` samples from its `statuses`.

    Without shards that is status.json. With shards it is done if status.json says so; else the worst that a writer
    says (failed, running, preempted); else done or partial by the number of samples. The status of each shard stands
    under "shards", and the error texts with their shard under "error".
    """
    whole: Status = every.get("", {})
    if whole.get("status") == "done" or not every.keys() - {""}:
        return whole
    states = {status.get("status") for status in every.values()}
    worst: tuple[RunStatus, ...] = ("failed", "running", "preempted")
    state = next((status for status in worst if status in states), final_status(recorded, total))
    result: Status = {
        "status": state,
        "time": max(status.get("time", "") for status in every.values()),
        "recorded": recorded,
        "samples": total,
        "shards": {name: dict(status) for name, status in every.items() if name},
    }
    errors = [f"{name}: {text}".removeprefix(": ") for name, status in every.items() if (text := status.get("error"))]
    if errors:
        result["error"] = "; ".join(errors)
    tasks = dict.fromkeys(task for status in every.values() if (task := status.get("slurm")))
    if tasks:
        result["slurm"] = ", ".join(tasks)
    if state == "partial":  # all shards of one division settled the same first samples
        limits = [status.get("limit") or 0 for name, status in every.items() if name]
        if all(limits) and all(name.partition("of")[2] == str(len(limits)) for name in every if name):
            result["limit"] = min(limits)
    return result
