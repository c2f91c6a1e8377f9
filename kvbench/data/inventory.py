"""The inventory of a prepared folder: manifest.json, with a checksum per file.

    {"bundle": "needle", "files": {"PaulGrahamEssays/addiction.txt": {"sha256": ..., "bytes": ..., ...}}, "missing": []}

It is written last, by a rename. So its existence says that no file in the folder is half written. (The name of the file
is older than the word inventory, which keeps it apart from the manifest of a run.)
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from kvbench.common.files import write_atomic
from kvbench.common.paths import cache_dir
from kvbench.data.text import read_json

NAME = "manifest.json"
CHUNK = 1 << 20


def home(bundle: str) -> Path:
    """Return the folder where `kvbench data <bundle>` puts its files; it need not exist."""
    return cache_dir() / "data" / bundle


def prepared(bundle: str) -> Path | None:
    """Return the folder of a prepared bundle, or None. Raises ValueError for an inventory that cannot be read."""
    return home(bundle) if read(home(bundle)) else None


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def read(folder: Path) -> dict[str, Any]:
    """Return the inventory of a folder, {} when it has none. Raises ValueError when it is damaged."""
    if not os.path.lexists(folder / NAME):
        return {}
    try:
        value = read_json(folder / NAME)
    except ValueError as error:
        raise ValueError(f"{error}; remove it and prepare the folder again") from None
    if not _is_inventory(value):
        raise ValueError(f"{folder / NAME}: not an inventory of `kvbench data`; remove it and prepare the folder again")
    inventory: dict[str, Any] = value
    return inventory


def _is_inventory(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("files"), dict):
        return False
    inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in value["files"])
    entries = value["files"].values()
    return inside and all(isinstance(entry, dict) and isinstance(entry.get("sha256", ""), str) for entry in entries)


def write(folder: Path, value: dict[str, Any]) -> None:
    """Replace the inventory in one step."""
    write_atomic(folder / NAME, json.dumps(value, indent=1, sort_keys=True) + "\n")


def same_size(folder: Path, name: str, entry: dict[str, Any]) -> bool:
    """Return True if a file is there with its recorded size: the check that costs nothing."""
    try:
        return (folder / name).stat().st_size == entry.get("bytes")
    except OSError:
        return False


def verify(folder: Path) -> list[str]:
    """Return one line per file that is missing or changed, by checksum. Raises ValueError without an inventory."""
    value = read(folder)
    if not value:
        raise ValueError(f"{folder}: no {NAME}, so nothing was prepared here or it was not finished")
    problems = []
    for name, entry in sorted(value["files"].items()):
        if not (folder / name).is_file():
            problems.append(f"{name}: is gone")
        elif not same_size(folder, name, entry) or sha256(folder / name) != entry.get("sha256"):
            problems.append(f"{name}: was changed after it was prepared")
    return problems
