"""Versions, device and hardware that a run was computed with, at its beginning and at each continuation.

None of it is part of the identity. A run that goes on after the code or the machine has changed keeps its folder, and
its manifest lists what it went on with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import combinations

from kvbench.store.schema import Environment, Manifest


def device_kind(device: str) -> str:
    """Return the kind of a device: "cuda" for "cuda:1"."""
    return re.sub(r":\d+$", "", device)


def environments(manifest: Manifest) -> list[Environment]:
    """Return what a run was computed with: at its beginning, then at each continuation with something else."""
    return [manifest, *manifest.get("continued_with", [])]


def is_known(manifest: Manifest, here: Environment) -> bool:
    """Return True if a run has the versions, the kind of device and the hardware of `here` in its manifest."""
    return any(_facts(known) == _facts(here) for known in environments(manifest))


def _facts(environment: Environment) -> tuple[object, ...]:
    return environment.get("versions"), device_kind(environment["device"]), environment.get("hardware")


def changes(was: Environment, now: Environment) -> list[str]:
    """Return what differs between two environments: ["code 1a → 2b", "hardware A → B"].

    Hardware that earlier versions did not record differs from nothing.
    """
    before, after = was.get("versions", {}), now.get("versions", {})
    words = [
        f"{name} {before.get(name, 'absent')} → {after.get(name, 'absent')}"
        for name in sorted({**before, **after})
        if before.get(name) != after.get(name)
    ]
    if device_kind(was["device"]) != device_kind(now["device"]):
        words.append(f"device {was['device']} → {now['device']}")
    old, new = was.get("hardware", {}), now.get("hardware", {})
    if old and new:
        words += _hardware_changes(old, new)
    return words


def _hardware_changes(old: Mapping[str, str | int], new: Mapping[str, str | int]) -> list[str]:
    names = {"name": "hardware"}
    both = {**old, **new} if len(old) > 1 < len(new) else ("name",)  # of some, records tell the name alone
    return [
        f"{names.get(key, key)} {old.get(key, 'absent')} → {new.get(key, 'absent')}"
        for key in both
        if old.get(key) != new.get(key) and key != "threads"  # the name has them
    ]


def is_mixed(manifests: Iterable[Manifest]) -> bool:
    """Return True if the samples of runs were computed with different versions or on different hardware."""
    different: list[Environment] = []
    for environment in (each for manifest in manifests for each in environments(manifest)):
        if all(_facts(environment) != _facts(other) for other in different):
            different.append(environment)
    return any(changes(each, other) for each, other in combinations(different, 2))


def hardware_words(manifests: Iterable[Manifest]) -> str | None:
    """Return the names of the hardware that runs were computed on, as one text; None where none is recorded."""
    return "; ".join(hardware_of(manifests)) or None


def hardware_of(manifests: Iterable[Manifest]) -> list[str]:
    """Return the names of the hardware that runs were computed on, sorted; [] where none is recorded."""
    known = (environment.get("hardware", {}) for manifest in manifests for environment in environments(manifest))
    return sorted({str(facts["name"]) for facts in known if "name" in facts})
