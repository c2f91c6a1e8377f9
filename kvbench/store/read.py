"""Stored runs as the report reads them; nothing here writes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kvbench.common.files import write_atomic
from kvbench.store.files import read_json
from kvbench.store.identity import plain
from kvbench.store.shards import merged, merged_status, sample_files, statuses

log = logging.getLogger(__name__)

_SCORES = "scores.json"
_MANIFEST = {"identity": dict, "label": dict, "headline": str, "hash": str, "num_samples": int}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there


@dataclass(frozen=True)
class StoredRun:
    """A run as read from its folder: `status` is {} before the first one, `samples` has one record per id.

    Samples are sorted by id, whoever recorded them in whatever order, so that sums over them are the same to the bit.
    """

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    status: dict[str, Any]
    samples: list[dict[str, Any]]


def load_run(path: str | Path) -> StoredRun:
    """Read one run folder without changing it, also while it is being written.

    A torn last line is passed over; of two records with one id an answer counts before an out-of-memory row, else the
    later. What shards recorded and say of themselves is merged. Scores given again later (`write_scores`) stand in
    place of those recorded, with the manifest's "scoring". Raises ValueError when the folder has no manifest.json or a
    broken file.
    """
    path = Path(path)
    if not (path / "manifest.json").is_file():
        raise ValueError(f"{path}: no manifest.json, so this is not a run folder")
    config_file = path / "config.yaml"
    try:
        text = config_file.read_text(encoding="utf-8") if config_file.exists() else ""
        config = yaml.load(text, Loader=_LOADER) or {}
    except yaml.YAMLError:
        raise ValueError(f"{config_file}: not valid YAML; delete it, the run goes on without it") from None
    if not isinstance(config, dict):
        raise ValueError(f"{config_file}: not a configuration; delete it, the run goes on without it")
    said = statuses(path)  # before the records, so that what it calls done is among them
    by_id = merged(sample_files(path))
    manifest = read_manifest(path)
    if (path / _SCORES).is_file():
        again = read_json(path / _SCORES)
        if not isinstance(again.get("scores"), dict) or "scoring" not in again:
            raise ValueError(f"{path / _SCORES}: not scores; delete this file, the run has those of its own")
        manifest["scoring"] = again["scoring"]
        for name in again["scores"].keys() & by_id.keys():
            by_id[name] = by_id[name] | {"scores": again["scores"][name]}
    status = merged_status(said, len(by_id), manifest["num_samples"])
    return StoredRun(path, config, manifest, status, [by_id[name] for name in sorted(by_id)])


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run folder. Raises ValueError when it is none."""
    manifest = read_json(path / "manifest.json")
    if not all(isinstance(manifest.get(key), kind) for key, kind in _MANIFEST.items()):
        raise ValueError(f"{path / 'manifest.json'}: not the manifest of a run; move the folder away")
    return manifest


def write_scores(path: Path, scoring: Mapping[str, Any], scores: Mapping[str, Mapping[str, float]]) -> None:
    """Put new scores (sample id → name → score) beside the records, which stay as they are; atomic."""
    content = {"scoring": plain(dict(scoring), "scoring"), "scores": {key: dict(scores[key]) for key in scores}}
    write_atomic(path / _SCORES, json.dumps(plain(content, "scores")) + "\n")


def load_runs(root: str | Path, benchmark: str | None = None) -> list[StoredRun]:
    """Read all runs at or below `root` (of one benchmark if named), sorted by folder; [] when there are none.

    A damaged run is passed over with a warning, so that it does not hide the others; a hidden folder in silence.
    """
    runs = []
    for path in run_folders(root):
        try:
            run = load_run(path)
        except ValueError as error:
            log.warning("%s; passed over", error)
            continue
        if benchmark in (None, run.manifest["label"].get("benchmark")):
            runs.append(run)
    return runs


def run_folders(root: str | Path) -> list[Path]:
    """The run folders at or below `root`, sorted: those with a manifest.json and no hidden name on the way."""
    root = Path(root)
    found = {file.parent for name in ("manifest.json", "samples*.jsonl") for file in root.rglob(name)}
    seen = {folder for folder in found if not any(name.startswith(".") for name in folder.relative_to(root).parts)}
    whole = {folder for folder in seen if (folder / "manifest.json").is_file()}
    for folder in sorted(seen - whole):
        log.warning("%s: no manifest.json; passed over", folder)
    return sorted(whole)
