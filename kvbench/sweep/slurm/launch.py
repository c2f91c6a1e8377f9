"""A sweep on Slurm: its unfinished groups as arrays of tasks, through submitit; outcomes from the run folders."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvbench.run.jobs import Job
from kvbench.run.refused import forget_refusal, refused_without_samples
from kvbench.run.runner import Outcome, finished
from kvbench.sweep.compose import Composed
from kvbench.sweep.slurm import queue
from kvbench.sweep.slurm.settings import SlurmSettings, refusal
from kvbench.sweep.slurm.task import work
from kvbench.sweep.slurm.units import Unit, by_group, fresh_folder, remember, remembered, write_payload
from kvbench.sweep.slurm.watch import Watch

log = logging.getLogger(__name__)


def compute(sweep: Sequence[Composed], settings: SlurmSettings) -> list[Outcome] | None:
    """Submit what is neither done nor refused nor in the queue already, and wait for it.

    Returns the outcomes of the sweep's runs in order; None without waiting.

    Raises:
        ValueError: Slurm refuses the tasks, and none of them stays submitted; or a shard is asked for by hand; or,
            without waiting, a run is refused.
    """
    jobs = {job.folder: job for part in sweep for job in part.jobs}
    for job in jobs.values():
        if job.cfg["shard"] is not None:
            raise ValueError(f"shard={job.cfg['shard']}: on Slurm, hydra.launcher.shards=n makes a task per shard")
    done = {folder: outcome for folder, job in jobs.items() if (outcome := finished(job)) is not None}
    refused = _refused([job for folder, job in jobs.items() if folder not in done])
    missing = [folder for folder in jobs if folder not in done and folder not in refused]
    if missing:
        queued = _queued(settings, missing)
        alive = {task: unit for task, unit in queued.items() if unit.covers([jobs[folder] for folder in missing])}
        _say_covered(alive, queued, missing)
        units = _units(sweep, missing, alive, settings)
        for folder in {Path(run) for unit in units for run in unit.runs}:
            forget_refusal(jobs[folder])  # of other versions or settings
        submitted = submit(units, settings) if units else {}
        _say(submitted, alive, len(missing), Path(next(iter(jobs.values())).cfg["paths"]["outputs"]))
        if not settings.wait:
            for error in refused.values():
                raise error  # the others are submitted
            return None
        done |= Watch({**alive, **submitted}, {f: jobs[f] for f in missing}, settings.poll_s).outcomes()
    done |= {folder: Outcome(jobs[folder], folder, error=error) for folder, error in refused.items()}
    return [done[job.folder] for part in sweep for job in part.jobs]


def _refused(jobs: Sequence[Job]) -> dict[Path, ValueError]:
    """Return the errors of the runs that a task would refuse, as far as that is known here. The log names each."""
    refused = refused_without_samples(jobs)
    for folder, error in refused.items():
        log.warning("not submitted: %s: %s", folder.name, error)
    return refused


def _queued(settings: SlurmSettings, missing: Sequence[Path]) -> dict[str, Unit]:
    """Return the tasks in the queue, of an earlier command, that compute something of missing runs."""
    wanted, queued = set(map(str, missing)), queue.queue(quiet=False)
    if queued is None:
        raise ValueError("hydra/launcher=fused_slurm: Slurm does not answer, so nothing is submitted; try again later")
    known = remembered(settings.folder, queued)
    return {task: unit for task, unit in known.items() if wanted & set(unit.runs)}


def _units(
    sweep: Sequence[Composed], missing: Sequence[Path], alive: Mapping[str, Unit], settings: SlurmSettings
) -> list[Unit]:
    """Return what to submit: a unit per group and shard, without the runs that a task in the queue computes whole."""
    queued = {run for unit in alive.values() for run in unit.runs}
    groups = by_group(sweep, [folder for folder in missing if str(folder) not in queued])
    if not groups:
        return []
    folder, n = fresh_folder(settings.folder), settings.shards
    shards = [None] if n == 1 else [f"{i}/{n}" for i in range(1, n + 1)]
    units = []
    for number, members in enumerate(groups.values()):
        payload = folder / f"group-{number}.json"
        runs = write_payload(payload, members)
        job = members[0][1][0]  # all jobs of a group ask for the same samples
        asked = (job.cfg["limit"], tuple(sorted(job.retry)), job.cfg["save"]["kept"])
        units += [Unit(str(payload), runs, shard, *asked) for shard in shards]
    return units


def submit(units: Sequence[Unit], settings: SlurmSettings) -> dict[str, Unit]:
    """Submit units as arrays of Slurm's largest size: task id → unit. Raises ValueError if Slurm refuses one."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder = Path(units[0].payload).parent
    executor = SlurmExecutor(folder=folder)
    executor.update_parameters(**_parameters(settings), job_name=queue.job_name(folder))
    size = queue.largest_array()
    submitted: dict[str, Unit] = {}
    for start in range(0, len(units), size):
        some = units[start : start + size]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it then raises
                jobs = executor.map_array(work, some, [settings.max_requeues] * len(some))
        except (FailedJobError, FailedSubmissionError) as error:
            if submitted:
                queue.cancel(sorted({task.partition("_")[0] for task in submitted}))
            raise refusal(str(error), settings) from None
        tasks = {job.job_id: unit for job, unit in zip(jobs, some, strict=True)}
        remember(folder, tasks)
        submitted |= tasks
    return submitted


def _parameters(settings: SlurmSettings) -> dict[str, Any]:
    """Return the settings as submitit takes them. One task is one process on one node."""
    again: dict[str, Any] = {"no-requeue": True} if settings.max_requeues == 0 else {"requeue": True}
    parameters = {
        "nodes": 1,
        "ntasks_per_node": 1,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "gpus_per_node": settings.gpus_per_node or None,
        "cpus_per_task": settings.cpus_per_task,
        "mem": None if settings.mem_gb is None else f"{int(settings.mem_gb * 1024)}MB",
        "time": settings.timeout_min,
        "signal_delay_s": settings.signal_delay_s,
        "setup": settings.setup or None,
        "array_parallelism": settings.array_parallelism,
        "stderr_to_stdout": True,  # one log per task
        "additional_parameters": again | settings.extra,
    }
    if settings.cpus_per_task is not None:  # since Slurm 22.05, steps do not inherit it
        parameters["srun_args"] = [f"--cpus-per-task={settings.cpus_per_task}"]
    return {key: value for key, value in parameters.items() if value is not None}


def _say_covered(alive: Mapping[str, Unit], queued: Mapping[str, Unit], missing: Sequence[Path]) -> None:
    """Log which tasks of earlier commands are in the queue, and which of them compute less than is asked for now."""
    again = set(map(str, missing)) - {run for unit in alive.values() for run in unit.runs}
    less = sorted(task for task in queued.keys() - alive.keys() if again & set(queued[task].runs))
    if alive:
        log.info("%d task(s) of an earlier command are still in the queue: %s", len(alive), ", ".join(sorted(alive)))
    if less:
        log.warning(
            "%d task(s) in the queue compute less than is asked for (limit, retry_oom, retry_failed, save.kept): %s. "
            "Their runs are submitted once more, and wait for each other. To be rid of the old ones: scancel %s",
            len(less),
            ", ".join(less),
            " ".join(less),
        )


def _say(submitted: Mapping[str, Unit], alive: Mapping[str, Unit], runs: int, outputs: Path) -> None:
    """Print which Slurm jobs compute the missing runs, and how to look at them or cancel them."""
    jobs = sorted({task.partition("_")[0] for task in submitted}, key=int)
    if jobs:
        log.info("logs: %s", Path(next(iter(submitted.values())).payload).parent)
    ids = " ".join(dict.fromkeys([*(t.partition("_")[0] for t in alive), *jobs]))
    print(f"Submitted {len(submitted)} task(s) for {runs} run(s) that are not complete; Slurm job(s): {ids}")
    print(f"Look: kvbench status {outputs}   Cancel: scancel {ids}", flush=True)
