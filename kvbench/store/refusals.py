"""Refusals: why a run that a command asks for cannot be computed, found before it has a folder.

    <outputs>/refused/<benchmark>/<model>/<run>.json

Without this file the run would only be missing, and its plan would recommend the command that was refused. The file
goes when the run begins.
"""

from __future__ import annotations

import json
from pathlib import Path

from kvbench.common.files import write_atomic
from kvbench.store.files import DELETE, read_json
from kvbench.store.identity import scrub_text, without_paths
from kvbench.store.schema import Refusal

_PARTS = 4  # of a run folder below the outputs: runs, benchmark, model, run


def write_refusal(folder: Path, refusal: Refusal) -> None:
    """Write why the run of `folder` was refused. Absolute paths and secrets are cut out of the reason.

    Raises:
        OSError: the file cannot be written.
    """
    file = _file(folder)
    content = refusal | {"reason": without_paths(scrub_text(refusal["reason"]))}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(content, indent=2) + "\n")


def read_refusal(folder: Path) -> Refusal | None:
    """Return why the run of `folder` was refused when it was last asked for; None if it was not.

    Raises:
        ValueError: the file is damaged.
    """
    if len(folder.parts) <= _PARTS:
        return None
    try:
        return read_json(_file(folder), Refusal, DELETE)
    except FileNotFoundError:
        return None


def delete_refusal(folder: Path, shard: str | None) -> None:
    """Delete the refusal of a run that begins now, unless another shard of the same division was refused."""
    try:
        refusal = read_refusal(folder)
    except ValueError:  # damaged
        refusal = None
    other = None if refusal is None else refusal["shard"]
    if other is None or shard is None or other == shard or other.partition("/")[2] != shard.partition("/")[2]:
        _file(folder).unlink(missing_ok=True)


def _file(folder: Path) -> Path:
    *_, benchmark, model, run = folder.parts
    return folder.parents[_PARTS - 1] / "refused" / benchmark / model / f"{run}.json"
