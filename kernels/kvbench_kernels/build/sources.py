"""Files in csrc/ that the libraries are compiled from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kvbench_kernels.build import agreement

_ENDINGS = {"cpu": (".cpp", ".hpp", agreement.HEADER), "host": (".cu", ".h"), "cuda": (".cu", ".h")}


def csrc() -> Path:
    """Return the folder of the sources: inside the package if it is installed, next to the package in a checkout.

    Raises:
        ValueError: there is no such folder.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "csrc", package.parent / "csrc"):
        if folder.is_dir():
            return folder
    raise ValueError(f"no csrc/ folder in {package} or {package.parent}: reinstall kvbench")


def units(kind: str) -> list[Path]:
    """Return the files that are compiled, the largest first: it takes longest, and others are compiled meanwhile.

    Raises:
        ValueError: csrc/ has no such files.
    """
    files = [file for file in _files(kind) if file.suffix not in (".h", ".hpp")]
    if not files:
        raise ValueError(f"no sources in {csrc()}: reinstall kvbench")
    return sorted(files, key=lambda file: -file.stat().st_size)


def digest(kind: str) -> str:
    """Return a hash of everything that is compiled or included: names and content, comments too, and Python's structs.

    The key of a cached library contains this hash. A changed comment compiles again, which is safe and rare.
    """
    total = hashlib.sha256(agreement.source().encode())
    for file in _files(kind):
        name = file.relative_to(csrc()).as_posix()
        total.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def _files(kind: str) -> list[Path]:
    return sorted(file for file in csrc().rglob("*") if file.name.endswith(_ENDINGS[kind]))
