"""Several writers of one run: each shard has its own files, and readers see them as one.

Appending to one file from several hosts is not atomic on network file systems; hence a file per writer:
samples.jsonl and status.json, or samples-<i>of<n>.jsonl and status-<i>of<n>.json for shard i of n.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kvbench.store.files import read_json, read_records

Shard = tuple[int, int] | None  # (i, n): the i-th of n parts of the samples, counted from 1; None: all samples

_SAMPLES = re.compile(r"samples(?:-(\d+)of(\d+))?\.jsonl")
_STATUS = re.compile(r"status-(\d+of\d+)\.json")


def normal(shard: Shard) -> Shard:
    """The shard, with None for the only one of one. Raises ValueError for one that there is not."""
    if shard is None or shard == (1, 1):
        return None
    index, number = shard
    if not 1 <= index <= number:
        raise ValueError(f"shard={index}/{number}: must be one of 1/{number} to {number}/{number}")
    return index, number


def suffix(shard: Shard) -> str:
    """What a shard's files have in their names: "-1of4"; "" for all samples."""
    return "" if shard is None else f"-{shard[0]}of{shard[1]}"


def sample_files(folder: Path) -> list[Path]:
    """The files with records: samples.jsonl first, then the shards in their order."""
    found = [(match, file) for file in folder.glob("samples*.jsonl") if (match := _SAMPLES.fullmatch(file.name))]
    return [file for _, file in sorted(found, key=lambda pair: (int(pair[0][2] or 0), int(pair[0][1] or 0)))]


def status_files(folder: Path) -> dict[str, Path]:
    """The shards' status files by shard, e.g. {"1of4": ...}."""
    found = [(match, file) for file in folder.glob("status-*.json") if (match := _STATUS.fullmatch(file.name))]
    return {match[1]: file for match, file in sorted(found, key=lambda pair: pair[1])}


def merged(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """One record per id: an answer counts before an out-of-memory row, of two alike the later one.

    Torn last lines are passed over. Raises ValueError with file and line for anything else that is no record.
    """
    by_id: dict[str, dict[str, Any]] = {}
    for file in files:
        mine: dict[str, dict[str, Any]] = {}
        for record in read_records(file)[0]:
            old = mine.get(record["id"])
            if old is None or _answered(record) or not _answered(old):
                mine[record["id"]] = record
        for name, record in mine.items():
            if name not in by_id or _rank(record) >= _rank(by_id[name]):
                by_id[name] = record
    return by_id


def _answered(record: dict[str, Any]) -> bool:
    return record.get("status") == "ok"


def _rank(record: dict[str, Any]) -> tuple[bool, str]:
    """Between files: the clocks of two hosts may differ, but lines do not say which of them is later."""
    return _answered(record), str(record.get("time", ""))


def read_status(folder: Path, shard: Shard = None) -> dict[str, Any]:
    """A writer's status file, or {} when none was written yet."""
    try:
        return read_json(folder / f"status{suffix(shard)}.json")
    except FileNotFoundError:
        return {}


def statuses(folder: Path) -> dict[str, dict[str, Any]]:
    """What the writers of a run say of themselves: status.json under "", a shard's under e.g. "1of4"."""
    whole = read_status(folder)
    every = {"": whole} if whole else {}
    for name, file in status_files(folder).items():
        try:
            every[name] = read_json(file)
        except FileNotFoundError:  # a writer of another division came and put it away
            continue
    return every


def merged_status(every: Mapping[str, Mapping[str, Any]], recorded: int, total: int) -> dict[str, Any]:
    """The status of a run with `recorded` of `total` samples, made of its `statuses`.

    Without shards that is status.json. With them: done if status.json says so, or else the worst that a writer
    says (failed, running, preempted), or else done if all samples are recorded, or else partial. What each shard
    says stands under "shards", the error texts with their shard under "error".
    """
    whole = dict(every.get("", {}))
    if whole.get("status") == "done" or not every.keys() - {""}:
        return whole
    said = {one.get("status") for one in every.values()}
    end = "done" if recorded >= total else "partial"
    state = next((one for one in ("failed", "running", "preempted") if one in said), end)
    made: dict[str, Any] = {
        "status": state,
        "time": max(str(one.get("time", "")) for one in every.values()),
        "recorded": recorded,
    }
    errors = [f"{name}: {one['error']}".removeprefix(": ") for name, one in every.items() if one.get("error")]
    tasks = dict.fromkeys(str(one["slurm"]) for one in every.values() if one.get("slurm"))
    if state == "partial":  # all shards of one number settled the same beginning
        limits = [int(one.get("limit") or 0) for name, one in every.items() if name]
        if all(limits) and all(name.partition("of")[2] == str(len(limits)) for name in every if name):
            made["limit"] = min(limits)
    return (
        made
        | ({"error": "; ".join(errors)} if errors else {})
        | ({"slurm": ", ".join(tasks)} if tasks else {})
        | {"samples": total, "shards": {name: dict(one) for name, one in every.items() if name}}
    )
