"""Slurm's own tools, without accounting: the tasks in the queue, the end of a job, the largest size of an array."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_JOB_NAMES = "kvbench-"  # how the names of our jobs begin
_PATIENCE = 60  # seconds for a controller that is busy

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Queued:
    """A task in the queue: its state, why it waits if it does, and the name of its job."""

    state: str
    reason: str
    name: str


def job_name(submission: Path) -> str:
    """Return the name of the jobs of a submission, from its folder.

    Ids are not enough: another cluster on the same file system has them too, and a new controller begins again at 1.
    """
    return _JOB_NAMES + submission.name


def queue(quiet: bool = True) -> dict[str, Queued] | None:
    """Return this user's tasks of kvbench by id ("12_3", or "12" outside an array); None if Slurm does not answer."""
    answer = _ask("squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%i|%T|%j|%r", quiet=quiet)
    if answer is None:
        return None
    lines = [line.split("|", 3) for line in answer.splitlines() if line.count("|") >= 3]
    return {task.strip(): Queued(state, reason, name) for task, state, name, reason in lines if _is_ours(name)}


def _is_ours(name: str) -> bool:
    return name.startswith(_JOB_NAMES)


def ending(task: str) -> str:
    """Return how a task ended, such as "CANCELLED" or "FAILED, exit code 0:9"; "" if Slurm does not know."""
    answer = _ask("scontrol", "show", "job", task, "-o", quiet=True) or ""
    state, code = (re.search(rf"\b{name}=(\S+)", answer) for name in ("JobState", "ExitCode"))
    if state is None:
        return ""
    return state[1] + (f", exit code {code[1]}" if code and code[1] != "0:0" else "")


def state(task: str) -> str:
    """Return the state of a task, "" if Slurm does not know it."""
    answer = _ask("squeue", "-h", "-j", task, "-o", "%T", quiet=True) or ""
    return answer.strip()


def requeue(task: str) -> bool:
    """Put a running task back into the queue; it will be killed and started again. Return True if Slurm agreed."""
    return _ask("scontrol", "requeue", task) is not None


def cancel(jobs: list[str]) -> None:
    """Cancel whole jobs or arrays."""
    _ask("scancel", *jobs)


def largest_array() -> int:
    """Return how many tasks an array may have; 1 on a cluster without arrays."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config") or "")
    return max(1, int(match[1])) if match else 1000


def _ask(*command: str, quiet: bool = False) -> str | None:
    """Return what a tool prints; None when it fails, with its message in the log unless `quiet`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        if not quiet:
            log.warning("%s: no answer within %d s", command[0], _PATIENCE)
        return None
    if done.returncode == 0:
        return done.stdout
    if not quiet:
        log.warning("%s: %s", command[0], " ".join(done.stderr.split()))
    return None
