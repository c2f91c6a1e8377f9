"""The check that records were computed where their manifest says: files of two machines may share a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from kvbench.store.environment import device_kind, environments, hardware_of
from kvbench.store.files import MOVE, read_bytes
from kvbench.store.schema import Continuation, Manifest, Record
from kvbench.store.shards import merged, sample_files

_PLACES = [re.compile(rb'"%s": ?("(?:[^"\\]|\\.)*")' % key) for key in (b"device", b"hardware")]


def fits(manifest: Manifest, data: bytes) -> bool:
    """Return True if the lines of `data` name no device and no hardware but those of the manifest.

    Fast, as no line is parsed. False also for other facts under these names: then `with_places` decides.
    """
    devices, hardware = (set(map(_text, pattern.findall(data))) for pattern in _PLACES)
    return {device_kind(device) for device in devices} <= _kinds(manifest) and hardware <= set(hardware_of([manifest]))


def _text(value: bytes) -> str:
    try:
        return str(json.loads(value))
    except ValueError:
        return ""


def _kinds(manifest: Manifest) -> set[str]:
    return {device_kind(environment["device"]) for environment in environments(manifest)}


def with_places(folder: Path, manifest: Manifest, records: Iterable[Record]) -> Manifest:
    """Return the manifest with the hardware that records name and it does not, as if the run had gone on there.

    Raises:
        ValueError: records are of another kind of device, whose numbers do not belong into one run.
    """
    records, kinds = list(records), _kinds(manifest)
    strange = [device for record in records if device_kind(device := record.get("device", "")) not in {*kinds, ""}]
    if strange:
        words = f"{len(strange)} sample(s) were computed on {device_kind(strange[0])}, the run on {' and '.join(kinds)}"
        raise ValueError(f"{folder}: {words}, so files of two runs are mixed; {MOVE}")
    names = {name for record in records if (name := record.get("hardware"))}
    for name in sorted(names - set(hardware_of([manifest]))):
        last = environments(manifest)[-1]
        times = [record.get("time", "") for record in records if record.get("hardware") == name]
        entry: Continuation = {
            "versions": last["versions"],
            "device": last["device"],
            "hardware": {"name": name},
            "recorded": len(records) - len(times),
            "time": min(times),
        }
        manifest = manifest.copy()
        manifest["continued_with"] = [*manifest.get("continued_with", []), entry]
    return manifest


def placed(folder: Path, manifest: Manifest) -> Manifest:
    """Return `with_places` of a run folder. Records are parsed only if they name something unknown."""
    files = sample_files(folder)
    if all(fits(manifest, read_bytes(file)) for file in files):
        return manifest
    return with_places(folder, manifest, merged(files, bulky=False).values())
