"""The work of a Slurm task: one unit. Nothing heavy is imported before the signal handlers are set."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvbench.cli.signals import Preempted, preemptible
from kvbench.common.command import log_messages
from kvbench.common.files import write_atomic
from kvbench.sweep.slurm import queue

if TYPE_CHECKING:
    from kvbench.run.runner import Outcome
    from kvbench.sweep.slurm.units import Unit

log = logging.getLogger(__name__)


def work(unit: Unit, max_requeues: int | None) -> None:
    """Compute a unit. A signal closes the runs as `preempted` and puts the task back into the queue.

    Ends with an exit code that is not 0 when a run did not end well, so that Slurm says FAILED.
    """
    log_messages("[%(asctime)s] %(message)s", force=True)
    logging.getLogger("submitit").propagate = False  # it prints for itself
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    if cores:  # torch would take all cores of a shared node; its import reads this
        os.environ.setdefault("OMP_NUM_THREADS", cores)
    with preemptible():
        try:
            failed = _compute(unit)
        except Preempted as stop:
            log.warning("%s: what is recorded stays", stop)
            _again(max_requeues)
            raise
        if failed:
            sys.exit(1)


def _compute(unit: Unit) -> int:
    """Compute a unit, write its report, and return the number of runs that failed."""
    unit.report.unlink(missing_ok=True)
    from kvbench.run.jobs import prepare
    from kvbench.run.runner import run_jobs
    from kvbench.sweep.slurm.units import read_payload

    cwd, runs, tasks = read_payload(Path(unit.payload))
    os.chdir(cwd)
    prepared = []
    for config, choices in tasks:
        config.progress = False  # a bar in a log file is thousands of lines
        if unit.shard is not None:
            config.shard = unit.shard
        prepared += prepare(config, choices)
    jobs = [job for job in prepared if str(job.folder) in unit.runs]
    changed = sorted(set(runs) - {str(job.folder) for job in jobs})
    if changed:
        cause = "its YAML, data or model changed since"
        if any(job.is_dated for job in prepared):
            cause = (
                "its chat template writes the date, so on another day it is another run; set "
                "model.chat_template=never, or a fixed date in model.chat_kwargs"
            )
        raise ValueError(f"{changed[0]}: no longer what was submitted: {cause}; submit again")
    return _report(unit, run_jobs(jobs))


def _report(unit: Unit, outcomes: Sequence[Outcome]) -> int:
    errors = {str(o.folder): [type(o.error).__name__, str(o.error)] for o in outcomes if o.error is not None}
    for folder, (kind, text) in errors.items():
        log.error("%s: %s: %s", Path(folder).name, kind, text)
    write_atomic(unit.report, json.dumps({"errors": errors}, indent=2) + "\n")
    return len(errors)


def _again(max_requeues: int | None) -> None:
    """Requeue this very task, unless it has been often enough or Slurm is ending it anyway.

    What Slurm ends is no longer RUNNING: cancelled jobs must not come back, and preempted ones it requeues itself.
    """
    array, number = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    task = f"{array}_{number}" if array else os.environ["SLURM_JOB_ID"]
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    state = queue.state(task)
    if state != "RUNNING":
        log.info("not requeued from here: Slurm has it as %s", state or "gone")
    elif max_requeues is not None and restarts >= max_requeues:
        log.error("not requeued: hydra.launcher.max_requeues=%d is used up", max_requeues)
    elif queue.requeue(task):
        log.info("requeued (restart %d); it will continue from here", restarts + 1)
