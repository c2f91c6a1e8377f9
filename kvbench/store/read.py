"""Stored runs as the report reads them; nothing here writes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kvbench.store.files import read_json, read_records, read_status, write_atomic
from kvbench.store.identity import plain

log = logging.getLogger(__name__)

_SCORES = "scores.json"


@dataclass(frozen=True)
class StoredRun:
    """A run as read from its folder: `status` is {} before the first one, `samples` has one record per id."""

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    status: dict[str, Any]
    samples: list[dict[str, Any]]


def load_run(path: str | Path) -> StoredRun:
    """Read one run folder without changing it, also while it is being written.

    A torn last line is passed over; of two records with one id the later counts. Scores given again later
    (`write_scores`) stand in place of those recorded, with the manifest's "scoring". Raises ValueError when the folder
    has no manifest.json or a broken file.
    """
    path = Path(path)
    if not (path / "manifest.json").is_file():
        raise ValueError(f"{path}: no manifest.json, so this is not a run folder")
    config_file = path / "config.yaml"
    try:
        config = yaml.safe_load(config_file.read_text(encoding="utf-8")) if config_file.exists() else {}
    except yaml.YAMLError:
        raise ValueError(f"{config_file}: not valid YAML; delete it, the run goes on without it") from None
    by_id = {record["id"]: record for record in read_records(path / "samples.jsonl")[0]}
    manifest = read_json(path / "manifest.json")
    if (path / _SCORES).is_file():
        again = read_json(path / _SCORES)
        manifest["scoring"] = again["scoring"]
        for name in again["scores"].keys() & by_id.keys():
            by_id[name] = by_id[name] | {"scores": again["scores"][name]}
    return StoredRun(path, config, manifest, read_status(path), list(by_id.values()))


def write_scores(path: Path, scoring: Mapping[str, Any], scores: Mapping[str, Mapping[str, float]]) -> None:
    """Put new scores (sample id → name → score) beside the records, which stay as they are; atomic."""
    content = {"scoring": plain(dict(scoring), "scoring"), "scores": {key: dict(scores[key]) for key in scores}}
    write_atomic(path / _SCORES, json.dumps(plain(content, "scores")) + "\n")


def load_runs(root: str | Path, benchmark: str | None = None) -> list[StoredRun]:
    """Read all runs below `root` (of one benchmark if named), sorted by folder; [] when there are none.

    A folder without manifest.json is passed over with a warning, a hidden one in silence.
    """
    root = Path(root)
    runs = []
    for path in sorted(folder for folder in root.glob("*/*/*") if folder.is_dir()):
        names = path.relative_to(root).parts
        if any(name.startswith(".") for name in names) or benchmark not in (None, names[0]):
            continue
        if (path / "manifest.json").is_file():
            runs.append(load_run(path))
        else:
            log.warning("%s: no manifest.json; passed over", path)
    return runs
