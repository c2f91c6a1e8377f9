"""The runner: jobs that share model and benchmark are computed as a group; records are on disk as soon as they exist.

The model is loaded only if a sample is missing, and once for all groups that follow each other with the same model. At
the end of a command the outcomes go to the report.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kvbench import models, store
from kvbench.common.files import allow_many_files
from kvbench.models.cache import ModelCache
from kvbench.run.batching import compute
from kvbench.run.jobs import Job
from kvbench.run.logged import logged
from kvbench.run.open_run import OpenRun, open_run
from kvbench.run.preflight import asked_kind, check_device, check_kernel, check_method, check_room, check_save
from kvbench.run.refused import keep_refusals
from kvbench.run.rescore import rescore
from kvbench.run.samples import GroupSamples, read_samples
from kvbench.run.versions import versions
from kvbench.store.environment import device_kind, environments

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """The end of a job: with a score, or with an error.

    Attributes:
        folder: the run folder.
        score: mean headline score of the samples with an answer; None without any.
        samples: number of recorded samples.
        error: what ended the job; None if nothing did.
        stored: the run without its texts; None after an error.
    """

    job: Job
    folder: Path
    score: float | None = None
    samples: int = 0
    error: Exception | None = None
    stored: store.StoredRun | None = None


def run_jobs(jobs: Sequence[Job]) -> list[Outcome]:
    """Compute what is missing of the jobs, group by group. Return their outcomes in the order of the jobs.

    Jobs that are the same run (a full cache under several budgets) are run once. A job that fails does not end the
    others, whether its folder is damaged, its budget impossible, or its method raises: its outcome holds the error.
    What concerns all jobs (weights that cannot be fetched, a full disk) ends everything; what was recorded stays.
    """
    allow_many_files()
    model_cache = ModelCache()
    groups: dict[str, dict[Path, Job]] = {}
    for job in jobs:
        groups.setdefault(job.group, {})[job.folder] = job
    outcomes: dict[tuple[str, Path], Outcome] = {}
    with logged(jobs):
        for group in groups.values():
            ended = {folder: outcome for folder, job in group.items() if (outcome := _ended(job)) is not None}
            rest = [job for folder, job in sorted(group.items()) if folder not in ended]
            if rest:
                ended |= _compute_group(rest, model_cache)
            outcomes |= {group[folder].key: outcome for folder, outcome in ended.items()}
    return [replace(outcomes[job.key], job=job) for job in jobs]


def _ended(job: Job) -> Outcome | None:
    """Return the outcome of a job that needs no work, or cannot be continued because its folder is damaged."""
    try:
        return finished(job)
    except ValueError as error:
        return Outcome(job, job.folder, error=error)


def finished(job: Job, say: bool = True) -> Outcome | None:
    """Return the outcome of a job whose samples are all recorded, None if one is missing. Needs no tokenizer.

    Args:
        say: log how many samples are recorded.

    Raises:
        ValueError: the run folder is damaged, or the run is asked for on another kind of device.
    """
    if not os.path.lexists(job.folder / "manifest.json"):
        return None
    stored = store.load_run(job.folder, digest=store.identity_hash(job.identity), any_scoring=True)
    retried = any(record["status"] in job.retry for record in stored.samples)
    if retried or not stored.progress.is_complete(job.cfg["limit"]):
        return None
    _check_asked_device(job, stored)
    if say:
        where = f"{job.label['benchmark']} {job.folder.name}"
        samples, total = len(stored.samples), stored.manifest["num_samples"]
        log.info("%s: %d of %d samples recorded, nothing to compute", where, samples, total)
    _warn_of_versions(job, stored)
    _warn_of_kept(job, stored)
    return _outcome(job, rescore(stored, job.benchmark))


def _warn_of_versions(job: Job, stored: store.StoredRun) -> None:
    """Log which versions differ from those that the run was recorded with, and how to compute it again."""
    now, known = versions(job.variant.method), environments(stored.manifest)
    changed = sorted(name for name in now if any(each["versions"].get(name) != now[name] for each in known))
    if changed:
        log.warning(
            "%s: recorded with another version of %s; its score is the old one; to compute it again, move %s away or "
            "choose another paths.outputs",
            job.folder.name,
            ", ".join(changed),
            job.folder,
        )


def _check_asked_device(job: Job, stored: store.StoredRun) -> None:
    """Check that a complete run is not asked for on another kind of device, which would have the same folder.

    It satisfies model.device=auto, wherever it was computed: tables and a login node need no GPU.

    Raises:
        ValueError: another kind is asked for.
    """
    asked = asked_kind(job.model)
    recorded = device_kind(stored.manifest["device"])
    if asked not in ("auto", recorded):
        raise ValueError(
            f"model.device={job.model.device}: {job.folder} was computed on {recorded}; "
            f"to compute it on {asked} as well, choose another paths.outputs"
        )


def _warn_of_kept(job: Job, stored: store.StoredRun) -> None:
    """Log how many samples were recorded without their kept tokens, where these are asked for."""
    if job.cfg["save"]["kept"]:
        missing = {record["id"] for record in stored.answered} - store.kept_ids(job.folder)
        if missing:
            log.warning(
                "%s: %d samples were recorded without save.kept=true; move the folder away to have their kept tokens",
                job.folder.name,
                len(missing),
            )


def _outcome(job: Job, stored: store.StoredRun) -> Outcome:
    headline = stored.manifest["headline"]
    scores = [record["scores"][headline] for record in stored.answered if headline in record["scores"]]
    score = sum(scores) / len(scores) if scores else None
    return Outcome(job, job.folder, score, len(stored.samples), stored=stored.slim())


def _compute_group(jobs: Sequence[Job], model_cache: ModelCache) -> dict[Path, Outcome]:
    """Compute what is missing of jobs of one group, sorted by folder: read, check, open, compute, finish."""
    if jobs[0].cfg["threads"]:
        torch.set_num_threads(jobs[0].cfg["threads"])
    try:
        samples = read_samples(jobs, model_cache)
    except ValueError as error:  # a sample that does not fit, for example: other benchmarks go on
        return _refused(dict.fromkeys(jobs, error), final=False)
    outcomes = _impossible(jobs, samples)
    with ExitStack() as stack:
        runs = [
            stack.enter_context(open_run(job, samples.total, samples.prompts))
            for job in jobs
            if job.folder not in outcomes
        ]
        if any(run.missing for run in runs):
            compute(runs, samples.missing, samples.prompts, model_cache)
        return outcomes | {run.job.folder: _close(run) for run in runs}


def _impossible(jobs: Sequence[Job], samples: GroupSamples) -> dict[Path, Outcome]:
    """Return the outcomes of jobs that cannot be computed, found before weights are loaded or a folder is created.

    Raises:
        ValueError: none of the jobs can be computed: the kernel, graph or fused steps that the user asked for cannot
            run.
    """
    if not samples.missing:
        return {}
    spec = jobs[0].model
    shape = models.shape(spec)  # once for all jobs: it builds the model without weights
    try:
        check_kernel(jobs[0].cfg, spec, shape)
    except ValueError as error:
        keep_refusals(dict.fromkeys(jobs, error), final=False)
        raise
    here = device_kind(models.device(spec))
    outcomes = _refused(_errors(jobs, lambda job: check_device(job, here)), final=False)
    rest = [job for job in jobs if job.folder not in outcomes]
    return outcomes | _refused(_errors(rest, lambda job: _check_anywhere(job, shape, samples)), final=True)


def _check_anywhere(job: Job, shape: models.Shape, samples: GroupSamples) -> None:
    """Raise ValueError if no machine can compute the job."""
    check_method(job, shape)
    check_room(job, samples)
    check_save(job)


def _errors(jobs: Sequence[Job], check: Callable[[Job], None]) -> dict[Job, Exception]:
    errors: dict[Job, Exception] = {}
    for job in jobs:
        try:
            check(job)
        except ValueError as error:
            errors[job] = error
    return errors


def _refused(errors: Mapping[Job, Exception], final: bool) -> dict[Path, Outcome]:
    """Return the outcomes of refused jobs, whose reasons are kept in the outputs."""
    keep_refusals(errors, final)
    return {job.folder: Outcome(job, job.folder, error=error) for job, error in errors.items()}


def _close(run: OpenRun) -> Outcome:
    """Write the final status of a run and return its outcome."""
    job = run.job
    if run.error is None:
        run.writer.finish(limit=job.cfg["limit"])
        return _outcome(job, rescore(store.load_run(job.folder, any_scoring=True), job.benchmark))
    run.writer.set_status("failed", error=f"{type(run.error).__name__}: {run.error}")
    return Outcome(job, job.folder, error=run.error)


def result(outcomes: Sequence[Outcome]) -> float | Exception | None:
    """Return the mean score of a configuration (over the parts of a suite), or its first error."""
    errors = [o.error for o in outcomes if o.error is not None]
    scores = [o.score for o in outcomes if o.score is not None]
    return errors[0] if errors else sum(scores) / len(scores) if scores else None


def present_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Print the table of the runs that ended well; write it and heatmaps of all stored runs that compare to them."""
    from kvbench.report.present import present

    runs = {o.folder: o.stored for o in outcomes if o.stored is not None}
    if runs:
        outputs = Path(outcomes[0].job.cfg["paths"]["outputs"])
        present([runs[folder] for folder in sorted(runs)], outputs / "reports", store=outputs / "runs", pdf=False)
    failed = [o for o in outcomes if o.error is not None]
    for outcome in failed[1:]:  # the first ends the command and is printed there
        if outcome.error is not failed[0].error:
            log.error("also failed: %s: %s", outcome.folder.name, outcome.error)
