"""Plans: which runs a command is about to make, written before anything is computed.

    <outputs>/plans/<hash8>.json
        {"schema", "command", "runs": [{"folder": relative to <outputs>, "limit": samples or null}], "cwd", "outputs",
         "created"}

A run that never began leaves no folder; its plan tells that it is missing, and which command makes it. The hash is
that of command and runs: issuing a command again finds its plan there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kvbench.common import clock
from kvbench.common.files import write_atomic
from kvbench.store.files import DELETE, read_json
from kvbench.store.identity import identity_hash, scrub, scrub_text
from kvbench.store.schema import PlanContent, PlannedRun, PlanSchema

_SCHEMA = 2  # 1 listed the folders alone


@dataclass(frozen=True)
class Plan:
    """A plan as read from its file.

    Attributes:
        limits: the absolute folder of each run, there or not, and how many samples were asked for (None: all).
        outputs: the folder with the plan and its runs, if that is not the one that the command writes to: it was moved
            or copied. Else None.
    """

    path: Path
    command: str
    limits: dict[Path, int | None]
    cwd: str
    created: str
    outputs: Path | None = None

    @property
    def runs(self) -> list[Path]:
        """The folders of the runs."""
        return list(self.limits)


def write_plan(outputs: str | Path, command: str, runs: Iterable[tuple[Path, int | None]]) -> Path:
    """Write what `command` is about to make: folders of runs, each with its `limit`. Secrets are left out.

    A run under several limits counts with the largest. The plan of the same command and runs in the same working
    folder stays as it is, but counts as the newest. Raises OSError when it cannot be written.
    """
    root = Path(outputs).absolute()
    command = _scrubbed(command)
    limits: dict[str, int | None] = {}
    for run, limit in runs:
        folder = os.path.relpath(Path(run).absolute(), root)
        other = limits.get(folder, limit)
        limits[folder] = None if limit is None or other is None else max(limit, other)
    planned: list[PlannedRun] = [{"folder": folder, "limit": limit} for folder, limit in limits.items()]
    name = identity_hash({"command": command, "runs": planned})[:8]
    path = root / "plans" / f"{name}.json"
    content: PlanContent = {
        "schema": _SCHEMA,
        "command": command,
        "runs": planned,
        "cwd": os.getcwd(),
        "outputs": str(root),
        "created": clock.now(),
    }
    try:
        there = read_json(path, PlanContent, DELETE)
        if all(there.get(key) == content[key] for key in ("schema", "command", "runs", "cwd", "outputs")):
            os.utime(path)
            return path
    except (FileNotFoundError, ValueError):  # not there, or damaged: written again
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, indent=2) + "\n")
    return path


def read_plan(path: Path) -> Plan | None:
    """Read a plan; None for one of another version. Raises ValueError that names the file when it is damaged."""
    if read_json(path, PlanSchema, DELETE)["schema"] != _SCHEMA:
        return None
    content = read_json(path, PlanContent, DELETE)
    root = path.absolute().parent.parent
    limits = {Path(os.path.normpath(root / run["folder"])): run["limit"] for run in content["runs"]}
    moved = None if _is_at(root, content.get("outputs")) else root
    return Plan(path, content["command"], limits, content["cwd"], content["created"], moved)


def _is_at(root: Path, outputs: str | None) -> bool:
    """Return True if `root` is the folder `outputs`, by whatever name, or if a plan does not tell its outputs."""
    try:
        return outputs is None or root == Path(outputs) or root.samefile(outputs)
    except (OSError, ValueError):  # not there, or no path at all
        return False


def _scrubbed(command: str) -> str:
    """Return the command without words such as "logger.api_key=..." and without passwords in URLs."""
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote: not what a shell would run, but no reason to fail here
        return str(scrub(command))
    # Hydra's prefixes + and ~ stand before the key
    kept = [word for word in words if scrub([re.sub(r"^[+~]+", "", word)])]
    if kept == words and scrub(command) == command:
        return scrub_text(command)  # with the user's own quotes
    return scrub_text(shlex.join(scrub(kept)))
