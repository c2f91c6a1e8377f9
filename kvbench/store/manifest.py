"""The manifest of a run folder, read and checked."""

from __future__ import annotations

from pathlib import Path

from kvbench.store.files import MOVE, read_json
from kvbench.store.identity import identity_hash
from kvbench.store.schema import SCHEMA, Manifest


def read_manifest(folder: Path, digest: str | None = None) -> Manifest:
    """Return the manifest of a run folder.

    Args:
        folder: a run folder.
        digest: the identity hash that the run must have.

    Raises:
        ValueError: the folder has no manifest, a damaged one, one whose hash is not that of its identity, or one of
            another run.
    """
    file = folder / "manifest.json"
    try:
        manifest = read_json(file, Manifest, MOVE)
    except FileNotFoundError:
        raise ValueError(f"{folder}: no manifest.json, so this is not a run folder") from None
    if manifest["schema"] != SCHEMA:
        raise ValueError(f"{file}: schema {manifest['schema']}, this version of kvbench reads {SCHEMA}; {MOVE}")
    identity, label = manifest["identity"], manifest["label"]
    if manifest["hash"] != identity_hash(identity):
        raise ValueError(f"{file}: the hash is not that of the identity, one of them was changed; {MOVE}")
    budget = "full" if identity["budget"] is None else str(identity["budget"])
    for name, value in (("method", identity["method"]["name"]), ("budget", budget)):
        if label[name] != value:  # type: ignore[literal-required]
            raise ValueError(f"{file}: label.{name} says {label[name]}, the identity says {value}; {MOVE}")  # type: ignore[literal-required]
    if digest is not None and manifest["hash"] != digest:
        raise ValueError(f"{folder}: holds another run, whose hash begins alike; choose another paths.outputs")
    return manifest
