"""Runs of a store as entries of a logger: a method under a budget on a benchmark, with all datasets of a suite."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvbench.common.text import one_line
from kvbench.store import Manifest, StoredRun, identity_hash, load_manifest, load_run
from kvbench.store.environment import device_kind
from kvbench.store.read import copies, why_skipped

log = logging.getLogger(__name__)

_ID = 16  # digits of the hash in the id of an entry
_DEVICE = re.compile(r"[a-z]{1,16}")


@dataclass(frozen=True)
class Entry:
    """One run of a logger.

    Attributes:
        key: sha256; that of the run's identity, or of what the runs of a suite share.
        device: its kind. Equal keys on one kind of device are the same entry.
        folders: the run folders, one per dataset of a suite, sorted.
        manifest: that of the first folder.
        group: the sweep that it belongs to.
        id: that in W&B, by which a run is resumed.
    """

    key: str
    device: str
    folders: tuple[Path, ...]
    manifest: Manifest
    group: str = ""
    id: str = ""

    @property
    def former_id(self) -> str:
        """The id that earlier versions gave, without the device."""
        return self.key[:_ID]

    @property
    def benchmark(self) -> str:
        """The name of the suite, or of the benchmark that is none."""
        place = self.manifest["part"]
        return place["suite"] if place else self.manifest["label"]["benchmark"]

    @property
    def name(self) -> str:
        """The name that people see; no two entries of a project have the same."""
        label = self.manifest["label"]
        return one_line(f"{self.benchmark} {label['method']} {label['budget']} {self.key[:8]} {self.device}")

    @property
    def tags(self) -> list[str]:
        """Method, model, benchmark and budget, each at most as long as W&B allows."""
        label = self.manifest["label"]
        words = [label["method"], label["model"], self.benchmark, f"budget={label['budget']}"]
        return [one_line(word)[:64] for word in words]

    def runs(self) -> list[StoredRun]:
        """Read the runs with their texts. A damaged run is skipped with a warning."""
        runs = []
        for folder in self.folders:
            try:
                runs.append(load_run(folder))
            except ValueError as error:
                log.warning("%s; skipped", one_line(str(error)))
        return runs


def entry_key(manifest: Manifest) -> tuple[str, str]:
    """Return key and device of the entry that a run belongs to: equal for the datasets of a suite under one variant."""
    device = device_kind(manifest["device"])
    return _key(manifest), device if _DEVICE.fullmatch(device) else "other"  # it becomes a part of names


def _key(manifest: Manifest) -> str:
    place = manifest["part"]
    if place is None:
        return manifest["hash"]
    identity = dict(manifest["identity"])
    identity["protocol"] = {key: value for key, value in manifest["identity"]["protocol"].items() if key != "dataset"}
    return identity_hash({**identity, "suite": place["suite"]})


def read_manifests(folders: Iterable[Path]) -> dict[Path, Manifest]:
    """Return the manifests of run folders, without copies of a run. Damaged folders are skipped with a warning."""
    manifests: dict[Path, Manifest] = {}
    for folder in folders:
        try:
            manifests[folder] = load_manifest(folder)
        except FileNotFoundError:
            continue
        except ValueError as error:
            log.warning("%s; skipped", one_line(str(error)))
    for copy, original in copies(manifests).items():
        log.warning("%s; skipped", one_line(why_skipped(copy, original, manifests)))
        del manifests[copy]
    return manifests


def entries_of(manifests: Mapping[Path, Manifest], groups: Mapping[Path, str]) -> list[Entry]:
    """Return the entries of runs, sorted by benchmark, method, budget and key.

    Args:
        manifests: run folder -> manifest.
        groups: run folder -> the group that its sweep has; a folder of no sweep is in the group of its benchmark.
    """
    by_key: dict[tuple[str, str], list[Path]] = {}
    for folder in sorted(manifests):
        by_key.setdefault(entry_key(manifests[folder]), []).append(folder)
    entries = []
    for (key, device), folders in by_key.items():
        entry = Entry(key, device, tuple(folders), manifests[folders[0]])
        named = sorted({groups[folder] for folder in folders if folder in groups})
        # runs of earlier versions do not tell their hardware: they may be in the logger, under the former id
        is_former = not any("hardware" in manifests[folder] for folder in folders)
        id = entry.former_id if is_former else f"{entry.former_id}-{device}"
        entries.append(replace(entry, group=named[0] if named else entry.benchmark, id=id))
    return sorted(entries, key=_order)


def _order(entry: Entry) -> tuple[str, ...]:
    label = entry.manifest["label"]
    return entry.benchmark, label["model"], label["method"], label["budget"], entry.key, entry.device


def with_other_datasets(folders: Sequence[Path]) -> list[Path]:
    """Return run folders together with those of the other datasets of their suites, which lie next to them.

    A store has `<benchmark>/<model>/<method>-b<budget>-<hash>`, and the datasets of a suite are benchmarks there.
    """
    found_here = dict.fromkeys(folders)
    for folder in folders:
        stem = folder.name.rpartition("-")[0]
        for other in folder.parent.parent.parent.glob(f"*/{folder.parent.name}/{stem}-*"):
            found_here[other] = None
    return list(found_here)
