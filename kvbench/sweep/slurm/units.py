"""Units of work for a cluster: the unfinished runs of a group, or of one shard of it, as files that a task can read.

<folder>/<time>-<token>/     "kvbench-<time>-<token>" is the name of its Slurm jobs
    group-<k>.json          the configurations of a group
    tasks-<job>.json        which unit each task of a Slurm job is
    group-<k>[-<i>of<n>].report.json   written by a task that came to its end: the errors of its runs
    <job>_<task>_0_log.out  what the task printed
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from kvbench.sweep.slurm.queue import Queued, job_name

if TYPE_CHECKING:
    from kvbench.run.jobs import Job
    from kvbench.sweep.compose import Composed


@dataclass(frozen=True)
class Unit:
    """The work of one task: `runs` (their folders) of the group in `payload`, the samples of `shard` of them.

    Submitit pickles it, so this module imports nothing heavy: the task must set its signal handlers early.

    Attributes:
        limit, retry, kept: what the runs are asked for: how many samples (None for all), the statuses of samples that
            are computed again, and kept tokens.
    """

    payload: str
    runs: tuple[str, ...]
    shard: str | None = None  # "i/n"
    limit: int | None = None
    retry: tuple[str, ...] = ()
    kept: bool = False

    def covers(self, jobs: Iterable[Job]) -> bool:
        """Return True if the task computes all that is asked for of those jobs whose runs it has."""
        runs = set(self.runs)
        return all(self._covers(job) for job in jobs if str(job.folder) in runs)

    def _covers(self, job: Job) -> bool:
        limit = job.cfg["limit"]
        has_samples = self.limit is None or (limit is not None and limit <= self.limit)
        return has_samples and job.retry <= set(self.retry) and (self.kept or not job.cfg["save"]["kept"])

    @property
    def report(self) -> Path:
        """The file in which the task reports how its runs ended."""
        suffix = "" if self.shard is None else "-" + self.shard.replace("/", "of")
        return Path(self.payload.removesuffix(".json") + suffix + ".report.json")

    def is_in(self, queued: Mapping[str, Queued], task: str) -> bool:
        """Return True if the task in the queue with this id is the one of this unit, not of another cluster."""
        return task in queued and queued[task].name == job_name(Path(self.payload).parent)

    @property
    def name(self) -> str:
        """The unit in words, for messages."""
        kinds = dict.fromkeys("/".join(Path(run).parts[-3:-1]) for run in self.runs)
        share = "" if self.shard is None else f", shard {self.shard}"
        return f"{len(self.runs)} run{'s' * (len(self.runs) > 1)} of {', '.join(kinds)}{share}"


def fresh_folder(root: str | Path) -> Path:
    """Return a new folder below `root`, named by the time and a random token. Raises ValueError if that is impossible.

    The token makes the name of the jobs unique, also among clusters that share a file system.
    """
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(root).absolute() / f"{stamp}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"hydra.launcher.folder={root}: cannot write there ({error.strerror})") from None
    return folder


def by_group(sweep: Sequence[Composed], wanted: Iterable[Path]) -> dict[str, list[tuple[Composed, list[Job]]]]:
    """Return group → the configurations that ask for wanted runs of it, each run once."""
    missing = set(wanted)
    groups: dict[str, list[tuple[Composed, list[Job]]]] = {}
    for part in sweep:
        chosen: dict[str, list[Job]] = {}
        for job in part.jobs:
            if job.folder in missing:
                missing.remove(job.folder)
                chosen.setdefault(job.group, []).append(job)
        for group, jobs in chosen.items():
            groups.setdefault(group, []).append((part, jobs))
    return groups


def write_payload(path: Path, members: Sequence[tuple[Composed, Sequence[Job]]]) -> tuple[str, ...]:
    """Write what a task needs to compute the runs of a group; returns their folders.

    Configurations are written with their interpolations, as a check expects them.
    """
    runs = tuple(str(job.folder) for _, jobs in members for job in jobs)
    tasks = [{"choices": part.choices, "config": OmegaConf.to_container(part.task)} for part, _ in members]
    path.write_text(json.dumps({"cwd": os.getcwd(), "runs": runs, "tasks": tasks}, indent=2) + "\n", encoding="utf-8")
    return runs


def read_payload(path: Path) -> tuple[str, list[str], list[tuple[DictConfig, dict[str, str]]]]:
    """Return the working folder, the runs, and configuration and choices of each job in the payload at `path`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    tasks = [(OmegaConf.create(task["config"]), task["choices"]) for task in content["tasks"]]
    return content["cwd"], content["runs"], tasks


def remember(folder: Path, units: Mapping[str, Unit]) -> None:
    """Write which unit each task computes; all tasks of one call belong to one Slurm job or array."""
    job = next(iter(units)).partition("_")[0]
    content = {task: asdict(unit) for task, unit in units.items()}
    (folder / f"tasks-{job}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def remembered(root: str | Path, queued: Mapping[str, Queued]) -> dict[str, Unit]:
    """Return the units of those tasks in the queue that were submitted from `root`, by task."""
    units: dict[str, Unit] = {}
    for job in dict.fromkeys(task.partition("_")[0] for task in queued):
        for file in Path(root).absolute().glob(f"*/tasks-{job}.json"):
            for task, content in json.loads(file.read_text(encoding="utf-8")).items():
                lists = {name: tuple(content[name]) for name in ("runs", "retry") if name in content}
                unit = Unit(**content | lists)
                if unit.is_in(queued, task):
                    units[task] = unit
    return units
