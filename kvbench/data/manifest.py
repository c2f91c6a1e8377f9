"""What a prepared folder holds: manifest.json, with a checksum per file.

    {"part": "needle", "files": {"PaulGrahamEssays/addiction.txt": {"sha256": ..., "bytes": ..., ...}}, "missing": []}

It is written last, by a rename. So its existence says that no file in the folder is half written.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kvbench.common.files import write_atomic
from kvbench.common.paths import cache_dir

NAME = "manifest.json"
CHUNK = 1 << 20


def home(part: str) -> Path:
    """Where `python -m kvbench.data <part>` puts its files; the folder need not exist."""
    return cache_dir() / "data" / part


def prepared(part: str) -> Path | None:
    """The folder of a prepared part, or None. Raises ValueError for a manifest that cannot be read."""
    return home(part) if read(home(part)) else None


def sha256(path: Path) -> str:
    """The checksum of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, {} when it has none. Raises ValueError when it is damaged."""
    try:
        value = json.loads((folder / NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise ValueError(f"{folder / NAME}: not valid JSON ({error}); remove it and prepare the folder again") from None
    files = value.get("files") if isinstance(value, dict) else None
    if (
        not isinstance(value, dict)
        or not isinstance(files, dict)
        or not all(isinstance(entry, dict) for entry in files.values())
    ):
        raise ValueError(f"{folder / NAME}: not a manifest of kvbench.data; remove it and prepare the folder again")
    return value


def write(folder: Path, value: dict[str, Any]) -> None:
    """Replace the manifest in one step."""
    write_atomic(folder / NAME, json.dumps(value, indent=1, sort_keys=True) + "\n")


def same_size(folder: Path, name: str, entry: dict[str, Any]) -> bool:
    """Whether a file is there with the size that the manifest says: the check that costs nothing."""
    try:
        return (folder / name).stat().st_size == entry.get("bytes")
    except OSError:
        return False


def verify(folder: Path) -> list[str]:
    """One line per file that is missing or changed, by checksum. Raises ValueError without a readable manifest."""
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
