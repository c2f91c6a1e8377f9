"""Copies of the kernels' sources with a planted mistake: the tests must find every one of them."""

from __future__ import annotations

import shutil
from pathlib import Path

from kvbench_kernels import build


def copy_sources(folder: Path, right: str = "", wrong: str = "") -> Path:
    """Copy csrc/ into `folder` and return the copy, with `right` replaced by `wrong` in the only place that has it."""
    copy = folder / "csrc"
    shutil.copytree(build.csrc(), copy)
    if right:
        places = [path for path in sorted(copy.rglob("*")) if path.is_file() and right in path.read_text()]
        assert len(places) == 1, f"{right!r} must stand in one file, but these have it: {places}"
        text = places[0].read_text()
        assert text.count(right) == 1, f"{places[0]} has {right!r} {text.count(right)} times"
        places[0].write_text(text.replace(right, wrong))
    return copy


def unit(copy: Path, name: str) -> Path:
    """Return the file called `name` in a copy of csrc/, whatever folder it is in."""
    (path,) = copy.rglob(name)
    return path
