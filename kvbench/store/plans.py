"""Plans: which runs a command is about to make, written before anything is computed.

    <outputs>/plans/<hash8>.json
        {"schema", "command", "runs": [folders, relative to <outputs>], "cwd", "created"}

A run that never began leaves no folder; its plan tells that it is missing, and which command makes it. The hash is
that of command and runs: issuing a command again finds its plan there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench.common import clock
from kvbench.common.files import write_atomic
from kvbench.store.files import read_json
from kvbench.store.identity import identity_hash, scrub, scrub_text

_SCHEMA = 1


@dataclass(frozen=True)
class Plan:
    """A plan as read from its file; `runs` are absolute folders, there or not."""

    path: Path
    command: str
    runs: list[Path]
    cwd: str
    created: str


def write_plan(outputs: str | Path, command: str, runs: Sequence[Path]) -> Path:
    """Write what `command` is about to make, the folders `runs`; secrets in the command are left out.

    The plan of the same command and runs in the same working folder stays as it is, but counts as the newest. Raises
    OSError when it cannot be written.
    """
    root = Path(outputs).absolute()
    command = _scrubbed(command)
    folders = [os.path.relpath(Path(run).absolute(), root) for run in runs]
    content: dict[str, Any] = {"command": command, "runs": list(dict.fromkeys(folders))}
    path = root / "plans" / f"{identity_hash(content)[:8]}.json"
    content["cwd"] = os.getcwd()  # relative folders in the command are seen from here
    try:
        if {key: read_json(path).get(key) for key in content} == content:
            os.utime(path)
            return path
    except (FileNotFoundError, ValueError):  # not there, or damaged: written anew
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    now = clock.now()
    write_atomic(path, json.dumps({"schema": _SCHEMA, **content, "created": now}, indent=2) + "\n")
    return path


def read_plan(path: Path) -> Plan:
    """Read a plan. Raises ValueError naming the file when it is none."""
    content: dict[str, Any] = read_json(path)
    command, runs = content.get("command"), content.get("runs")
    if not isinstance(command, str) or not isinstance(runs, list) or not all(isinstance(run, str) for run in runs):
        raise ValueError(f"{path}: not a plan; delete this file")
    root = path.absolute().parent.parent
    folders = [Path(os.path.normpath(root / run)) for run in runs]
    return Plan(path, command, folders, str(content.get("cwd", "")), str(content.get("created", "")))


def _scrubbed(command: str) -> str:
    """The command without words such as "logger.api_key=..." and without passwords in URLs."""
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote: not what a shell would run, but no reason to fail here
        return str(scrub(command))
    # Hydra's prefixes + and ~ stand before the key
    kept = [word for word in words if scrub([re.sub(r"^[+~]+", "", word)])]
    if kept == words and scrub(command) == command:
        return scrub_text(command)  # with the user's own quotes
    return scrub_text(shlex.join(scrub(kept)))
