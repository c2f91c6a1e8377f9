"""All plans and runs below the folders that the user names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvbench.status.commands import command_of
from kvbench.status.runs import RunState, look
from kvbench.store.plans import Plan, read_plan


@dataclass
class PlanState:
    """A plan with the states of its runs; `complete` when issuing its command again would compute nothing."""

    plan: Plan
    runs: list[RunState]

    @property
    def complete(self) -> bool:
        """All runs are done, or have the samples that the command's `limit=` asks for."""
        limit = re.search(r"(?:^|\s)limit=(\d+)(?=\s|$)", self.plan.command)
        return all(run.state == "done" or (limit and _limited(run, int(limit[1]))) for run in self.runs)


@dataclass
class Survey:
    """Plans by age, the runs of no plan with the command that makes each, and what could not be read."""

    plans: list[PlanState] = field(default_factory=list)
    others: list[RunState] = field(default_factory=list)
    commands: dict[Path, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """There is something, and nothing of it is left to do."""
        done = all(plan.complete for plan in self.plans) and all(run.state == "done" for run in self.others)
        return done and not self.damaged and bool(self.plans or self.others)


def survey(paths: Sequence[Path]) -> Survey:
    """Look at outputs folders (with their plans), or at run folders and what contains them.

    Raises ValueError naming a path that is not there.
    """
    made = Survey()
    seen: set[Path] = set()  # plans and runs in no plan
    states: dict[Path, RunState] = {}  # a run may be in several plans
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder; name the one of paths.outputs, or run folders")
        path = Path(os.path.abspath(path))
        outputs = outputs_of(path)
        planned: set[Path] = set()
        for plan in _plans(outputs, made):
            inside = [run for run in plan.runs if path == outputs or run.is_relative_to(path)]
            planned |= set(inside)
            if inside and plan.path not in seen:
                seen.add(plan.path)
                states |= {run: look(run) for run in inside if run not in states}
                runs = [states[run] for run in inside]
                made.plans.append(PlanState(plan, [_waiting(run, runs) for run in runs]))
        for folder in _run_folders(path / "runs" if path == outputs and (path / "runs").is_dir() else path, made):
            if folder not in planned | seen:
                seen.add(folder)
                run = look(folder)
                made.others.append(run)
                command = None if run.state in ("done", "damaged") else command_of(folder, outputs)
                made.commands |= {folder: command} if command else {}
    return made


def outputs_of(path: Path) -> Path:
    """The folder of paths.outputs that a path is in: the nearest with plans or runs; else the path itself."""
    known = (one for one in (path, *path.parents) if any(os.path.isdir(one / name) for name in ("plans", "runs")))
    return next(known, path)  # os.path: a folder that may not be looked into is no error here


def _run_folders(root: Path, made: Survey) -> list[Path]:
    """Folders with a manifest or samples, at any depth; hidden ones are not looked into."""
    found = []
    for folder, below, files in os.walk(root, onerror=lambda error: made.damaged.append(_unreadable(error))):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if "manifest.json" in files or any(name.startswith("samples") and name.endswith(".jsonl") for name in files):
            found.append(Path(folder))
    return found


def _plans(outputs: Path, made: Survey) -> list[Plan]:
    """The readable plans, oldest first; of those of one command the newest, whose runs it asks for today."""
    plans: dict[tuple[str, str], tuple[float, Plan]] = {}
    try:
        names = sorted(name for name in os.listdir(outputs / "plans") if name.endswith(".json"))
    except FileNotFoundError:
        return []
    except OSError as error:
        made.damaged.append(_unreadable(error))
        return []
    for name in names:
        file = outputs / "plans" / name
        try:
            plan, written = read_plan(file), file.stat().st_mtime
        except (ValueError, OSError) as error:
            if str(error) not in made.damaged:
                made.damaged.append(str(error))
            continue
        same = (plan.command, plan.cwd)
        plans[same] = max(plans.get(same, (written, plan)), (written, plan), key=lambda pair: pair[0])
    return sorted((plan for _, plan in plans.values()), key=lambda plan: (plan.created, plan.path))


def _unreadable(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}"


def _waiting(run: RunState, runs: Sequence[RunState]) -> RunState:
    at_work = any(other.state == "running" for other in runs)
    return RunState(run.folder, "waiting") if run.state == "missing" and at_work else run


def _limited(run: RunState, limit: int) -> bool:
    return run.state == "partial" and run.total is not None and run.recorded >= min(limit, run.total)
