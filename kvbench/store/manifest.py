"""The manifest of a run folder: read and checked, and what the run goes on with after something has changed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from kvbench.common import clock
from kvbench.common.files import write_atomic
from kvbench.store.environment import changes, environments, is_known
from kvbench.store.files import MOVE, read_json
from kvbench.store.identity import identity_hash
from kvbench.store.schema import SCHEMA, Continuation, Environment, Manifest
from kvbench.store.shards import merged, sample_files

log = logging.getLogger(__name__)


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


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of a run folder, all of it or nothing."""
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def take_up(folder: Path, own: Manifest) -> Manifest:
    """Return the manifest on file, for a process that goes on with the run; nobody else opens the folder meanwhile.

    A warning says what has changed since the last sample. A run without samples has no past: it begins with `own`.

    Args:
        folder: a run folder.
        own: the manifest that this process would write into a new folder.

    Raises:
        ValueError: as `read_manifest`.
    """
    stored = read_manifest(folder, own["hash"])
    if is_known(stored, own):
        return stored
    recorded = len(merged(sample_files(folder)))
    if not recorded:
        own = own.copy()
        own["created"] = stored["created"]
        write_manifest(folder, own)
        return own
    changed = changes(environments(stored)[-1], own)
    if changed:
        log.warning(
            "%s: %d sample(s) were recorded with something else (%s); the rest is recorded with what is here now, and "
            "tables mark the run; to compute all of it again, move the folder away or choose another paths.outputs",
            folder,
            recorded,
            ", ".join(changed),
        )
    return stored


def go_on(folder: Path, here: Environment) -> Manifest:
    """List the versions and the hardware of this process in the manifest, unless they are there. Return the manifest.

    To be called before the first record of a process, so that no record is without its versions, and not before: a
    process that records nothing leaves the run as it is. Nobody else may open the folder meanwhile.
    """
    manifest = read_manifest(folder)
    if is_known(manifest, here):
        return manifest
    entry: Continuation = {
        "versions": here["versions"],
        "device": here["device"],
        "recorded": len(merged(sample_files(folder))),
        "time": clock.now(),
    }
    if "hardware" in here:
        entry["hardware"] = here["hardware"]
    manifest["continued_with"] = [*manifest.get("continued_with", []), entry]
    write_manifest(folder, manifest)
    return manifest
