"""The survey in words, and as JSON. Texts from files are escaped before a terminal sees them."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

from kvbench.common.text import one_line, printable
from kvbench.status.commands import resuming, without_trust
from kvbench.status.runs import COMPLETE, STATES, RunState
from kvbench.status.survey import PlanState, Survey, outputs_of

_NOTE = 100  # characters of an error in the table; the JSON has all of it
_COMMANDS = 10  # for runs in no plan


def text(survey: Survey, only: Collection[str] = STATES) -> str:
    """Return plans and their runs, the command that resumes each, then the runs in no plan."""
    blocks = [_plan(plan, only) for plan in survey.plans]
    if survey.others:
        title = "Runs in no plan" if survey.plans else "Runs"
        unfinished = [run for run in survey.others if run.state not in COMPLETE]
        commands = dict.fromkeys(survey.commands[run.folder] for run in unfinished if run.folder in survey.commands)
        lines = [f"{title}: {_counts(survey.others)}", *_table(survey.others, only)]
        if unfinished:
            lines += ["", "  To resume, issue the command that made them again" + (", or" if commands else "")]
            lines += [f"    {printable(command)}" for command in list(commands)[:_COMMANDS]]
            left = len(commands) - _COMMANDS
            lines += [f"    ... and {left} more: see --json"] if left > 0 else []
        blocks.append("\n".join(lines))
    skipped = [f"{copy}: a copy of the run in {original}" for copy, original in survey.copies.items()]
    blocks += [f"Skipped: {one_line(line)}" for line in [*skipped, *survey.damaged]]
    return "\n\n".join(blocks)


def _plan(state: PlanState, only: Collection[str]) -> str:
    plan = state.plan
    command = printable(without_trust(plan.command))
    resume, where = printable(resuming(plan)), _where(plan.cwd)
    lines = [f"Plan {one_line(plan.path.stem)}, {_day(plan.created)}: {_counts(state.runs)}", f"  $ {command}{where}"]
    lines += _table(state.runs, only)
    left = [run.state for run in state.runs if run.state not in COMPLETE]
    if left and set(left) == {"refused"}:
        lines += ["", "  Nothing to resume: change what the refusals name, or leave these runs out"]
    elif left:
        at_work = any(run.state == "running" for run in state.runs)
        lines += ["", "  At work; should it stop, resume with" if at_work else "  Resume with"]
        lines += [f"    {resume}{where}"]
        if command != printable(plan.command):
            lines += ["    (and, if you trust the model's own code, with the trust_remote_code that was left out here)"]
    return "\n".join(lines)


def _where(cwd: str) -> str:
    """Return where a command was issued, if that is not here: relative paths in it begin there."""
    if not cwd or Path(cwd) == Path.cwd():
        return ""
    return f"   (in {one_line(cwd)})" if os.path.isdir(cwd) else f"   (issued in {one_line(cwd)}, which is not here)"


def _counts(runs: Sequence[RunState]) -> str:
    counts = Counter(run.state for run in runs)
    number = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    return f"{number}, " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def _table(runs: Sequence[RunState], only: Collection[str]) -> list[str]:
    shown = [run for run in runs if run.state in only]
    if not shown:
        return []
    rows = [["state", "run", "samples", "last written", "slurm", ""]]
    rows += [[run.state, name(run), _samples(run), age(run), run.slurm or "", _note(run)] for run in shown]
    if not any(run.slurm for run in shown):
        rows = [[*row[:4], row[5]] for row in rows]
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return ["", *(f"  {line}".rstrip() for line in lines)]


def name(run: RunState) -> str:
    """Return a run's folder below `runs`, else relative to the working folder."""
    runs = outputs_of(run.folder) / "runs"
    return str(run.folder.relative_to(runs)) if run.folder.is_relative_to(runs) else os.path.relpath(run.folder)


def _samples(run: RunState) -> str:
    return "" if run.total is None else f"{run.recorded}/{run.total}"


def age(run: RunState) -> str:
    """Return how long ago the run wrote something, in the largest unit that fits."""
    if run.last is None:
        return ""
    seconds = max(0.0, time.time() - run.last)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _note(run: RunState) -> str:
    words = "; ".join(filter(None, (run.note, " ".join((run.error or "").split()))))
    if run.state == "refused":  # its end says what to change
        return words
    return words if len(words) <= _NOTE else f"{words[:_NOTE]}…"


def _day(created: str) -> str:
    return one_line(created.replace("T", " ").replace("Z", " UTC")) or "of unknown age"


def as_json(survey: Survey, only: Collection[str] = STATES) -> dict[str, object]:
    """Return the survey for programs."""
    return {
        "complete": survey.complete,
        "plans": [
            {
                "file": str(state.plan.path),
                "command": resuming(state.plan),
                "cwd": state.plan.cwd,
                "created": state.plan.created,
                "complete": state.complete,
                "runs": [_run(run) for run in state.runs if run.state in only],
            }
            for state in survey.plans
        ],
        "runs": [
            _run(run) | {"command": survey.commands.get(run.folder)} for run in survey.others if run.state in only
        ],
        "copies": {str(copy): str(original) for copy, original in survey.copies.items()},
        "damaged": survey.damaged,
    }


def _run(run: RunState) -> dict[str, object]:
    last = None if run.last is None else datetime.fromtimestamp(run.last, UTC).isoformat(timespec="seconds")
    content = {key: value for key, value in vars(run).items() if key not in ("progress", "hash")}
    return content | {"folder": str(run.folder), "recorded": run.recorded, "samples": run.total, "last": last}
