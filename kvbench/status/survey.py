"""All plans and runs below the folders that the user names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvbench.status.commands import command_of
from kvbench.status.runs import COMPLETE, RunState, look, refused
from kvbench.store.manifest import read_manifest
from kvbench.store.plans import Plan, read_plan
from kvbench.store.read import copies, walk


@dataclass
class PlanState:
    """A plan with the states of its runs."""

    plan: Plan
    runs: list[RunState]

    @property
    def complete(self) -> bool:
        """Return True if issuing the plan's command again would compute nothing."""
        return all(run.state in COMPLETE for run in self.runs)


@dataclass
class Survey:
    """Plans by age, the runs in no plan with the command that makes each, and what could not be read.

    `copies` has the folders of copied runs with the folder of each original; they are not counted as runs.
    """

    plans: list[PlanState] = field(default_factory=list)
    others: list[RunState] = field(default_factory=list)
    commands: dict[Path, str] = field(default_factory=dict)
    copies: dict[Path, Path] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Return True if there are runs, and nothing is left to do."""
        done = all(plan.complete for plan in self.plans) and all(run.state in COMPLETE for run in self.others)
        return done and not self.damaged and bool(self.plans or self.others)


def survey(paths: Sequence[Path]) -> Survey:
    """Look at outputs folders (with their plans), or at run folders and what contains them.

    Raises ValueError that names a path which does not exist.
    """
    result = Survey()
    seen: set[Path] = set()  # plans and runs in no plan
    states: dict[Path, RunState] = {}  # a run may be in several plans
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder; name the one of paths.outputs, or run folders")
        path = Path(os.path.abspath(path))
        outputs = outputs_of(path)
        planned: set[Path] = set()
        for plan in _plans(outputs, result):
            inside = [run for run in plan.runs if path == outputs or run.is_relative_to(path)]
            planned |= set(inside)
            if inside and plan.path not in seen:
                seen.add(plan.path)
                states |= {run: look(run) for run in inside if run not in states}
                limits = [(states[run], plan.limits[run]) for run in inside]
                runs = [refused(_under_limit(run, limit), limit) for run, limit in limits]
                result.plans.append(PlanState(plan, [_waiting(run, runs) for run in runs]))
        below = path / "runs" if path == outputs and (path / "runs").is_dir() else path
        for folder in sorted(folder for folder, _ in walk(below, result.damaged.append)):
            if folder not in planned | seen:
                seen.add(folder)
                states[folder] = look(folder)
                result.others.append(states[folder])
    _set_copies_apart(result, states)
    for run in result.others:
        command = None if run.state in (*COMPLETE, "damaged") else command_of(run.folder, outputs_of(run.folder))
        if command:
            result.commands[run.folder] = command
    return result


def _set_copies_apart(result: Survey, states: Mapping[Path, RunState]) -> None:
    """Move the runs in no plan that are copies of others from `result.others` to `result.copies`.

    A run that was computed twice is no copy: both have a state.
    """
    readable = {path: read_manifest(path) for path, run in states.items() if run.hash is not None}
    others = {run.folder for run in result.others}
    result.copies = {
        copy: original
        for copy, original in copies(readable).items()
        if copy in others and readable[copy]["created"] == readable[original]["created"]
    }
    result.others = [run for run in result.others if run.folder not in result.copies]


def outputs_of(path: Path) -> Path:
    """Return the folder of paths.outputs that a path is in: the nearest with plans or runs; else the path itself."""
    candidates = (path, *path.parents)
    known = (folder for folder in candidates if any(os.path.isdir(folder / name) for name in ("plans", "runs")))
    return next(known, path)  # os.path: a folder that may not be looked into is no error here


def _plans(outputs: Path, result: Survey) -> list[Plan]:
    """Return the readable plans, oldest first. Of several plans of one command the newest counts.

    Plans of another version are left out; their runs show as runs in no plan.
    """
    plans: dict[tuple[str, str], tuple[float, Plan]] = {}
    try:
        names = sorted(name for name in os.listdir(outputs / "plans") if name.endswith(".json"))
    except FileNotFoundError:
        return []
    except OSError as error:
        result.damaged.append(f"{error.filename}: {error.strerror}")
        return []
    for name in names:
        file = outputs / "plans" / name
        try:
            plan, written = read_plan(file), file.stat().st_mtime
        except (ValueError, OSError) as error:
            if str(error) not in result.damaged:
                result.damaged.append(str(error))
            continue
        if plan is None:
            continue
        same = (plan.command, plan.cwd)
        plans[same] = max(plans.get(same, (written, plan)), (written, plan), key=lambda pair: pair[0])
    return sorted((plan for _, plan in plans.values()), key=lambda plan: (plan.created, plan.path))


def _waiting(run: RunState, runs: Sequence[RunState]) -> RunState:
    at_work = any(other.state == "running" for other in runs)
    return RunState(run.folder, "waiting") if run.state == "missing" and at_work else run


def _under_limit(run: RunState, limit: int | None) -> RunState:
    """Return the state of a run for its plan: it is limited only if it has the samples that the plan asks for."""
    if run.state != "limited" or run.progress is None or run.progress.is_complete(limit):
        return run
    wanted = f"{limit} samples" if limit is not None else f"all {run.total} samples"
    return replace(run, state="partial", note=f"{run.note}, the plan asks for {wanted}")
