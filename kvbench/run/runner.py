"""The runner: jobs that share model and benchmark become one plan; every record is on disk as soon as it is made.

The model is loaded only if a sample is missing, and once for all plans that follow each other with the same model.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from kvbench import models, prompts, store
from kvbench.benchmarks.base import Sample, Tokenizer
from kvbench.config import shard_of
from kvbench.run.batching import Open, generate, question_of, span_of
from kvbench.run.jobs import Job
from kvbench.run.rescore import rescore
from kvbench.run.versions import versions

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """How a job ended: its folder, mean headline score and records without their texts, or the error that ended it."""

    job: Job
    folder: Path
    score: float | None = None
    samples: int = 0
    error: Exception | None = None
    stored: store.StoredRun | None = None


def run_jobs(jobs: Sequence[Job], kept: models.ModelCache | None = None) -> list[Outcome]:
    """Run jobs, those of one group as one plan; outcomes in the order of the jobs.

    Jobs that are the same run (a full cache under several budgets) are run once. A job that fails does not take the
    others with it, be it that its folder is damaged, its budget impossible, or its method in error: its outcome holds
    the error. What concerns all of them (weights out of reach, a full disk) ends everything; what was recorded stays.
    """
    kept = kept or models.ModelCache()
    groups: dict[str, dict[Path, Job]] = {}
    for job in jobs:
        groups.setdefault(job.group, {})[job.folder] = job
    outcomes: dict[tuple[str, Path], Outcome] = {}
    for distinct in groups.values():
        ended = {folder: outcome for folder, job in distinct.items() if (outcome := _ended(job)) is not None}
        todo = {folder: job for folder, job in sorted(distinct.items()) if folder not in ended}
        found = ended | (_run(todo, kept) if todo else {})
        outcomes |= {distinct[folder].key: outcome for folder, outcome in found.items()}
    return [replace(outcomes[job.key], job=job) for job in jobs]


def _ended(job: Job) -> Outcome | None:
    """The outcome of a job that needs no work, or cannot get any because its folder is damaged."""
    try:
        return finished(job)
    except ValueError as error:
        return Outcome(job, job.folder, error=error)


def finished(job: Job, say: bool = True) -> Outcome | None:
    """The outcome of a job whose samples are all recorded, found without a tokenizer; None if one is missing."""
    if not os.path.lexists(job.folder / "manifest.json"):
        return None
    stored = store.load_run(job.folder, digest=store.identity_hash(job.identity))
    retry = job.cfg["retry_oom"] and any(record["status"] == "oom" for record in stored.samples)
    if retry or not stored.progress.is_complete(job.cfg["limit"]):
        return None
    if say:
        where = f"{job.label['benchmark']} {job.folder.name}"
        samples, total = len(stored.samples), stored.manifest["num_samples"]
        log.info("%s: %d of %d samples recorded, nothing to compute", where, samples, total)
    found, now = stored.manifest["versions"], versions(job.variant.method)
    changed = sorted(name for name in now if found.get(name) != now[name])
    if changed:
        log.warning(
            "%s: recorded with another version of %s; move the folder away to compute it anew",
            job.folder.name,
            ", ".join(changed),
        )
    return _outcome(job, rescore(stored, job.benchmark))


def _outcome(job: Job, stored: store.StoredRun) -> Outcome:
    headline = stored.manifest["headline"]
    scores = [record["scores"][headline] for record in stored.answered if headline in record["scores"]]
    score = sum(scores) / len(scores) if scores else None
    return Outcome(job, job.folder, score, len(stored.samples), stored=stored.slim())


def _run(jobs: Mapping[Path, Job], kept: models.ModelCache) -> dict[Path, Outcome]:
    """Render the prompts, open the runs, load the model, work through the samples."""
    first = next(iter(jobs.values()))
    cfg, question = first.cfg, question_of(first)
    if cfg["threads"]:
        torch.set_num_threads(cfg["threads"])
    try:
        tokenizer = kept.tokenizer(first.model)
        samples = first.benchmark.samples(cast("Tokenizer", tokenizer))
        render = prompts.renderer(first.model, tokenizer, first.benchmark)
        mine = _share(samples, cfg)
        wanted = _wanted(jobs.values(), mine)
        rendered = {sample.id: render(sample) for sample in wanted}
    except ValueError as error:  # a sample that does not fit: other benchmarks go on
        return {folder: Outcome(job, folder, error=error) for folder, job in jobs.items()}
    outcomes = {}
    elsewhere = [sample for sample in samples[: cfg["limit"]] if sample not in mine]
    for folder, job in jobs.items():
        spans = [span_of(prompt, question) for prompt in rendered.values()]
        others = (span_of(render(sample), question) for sample in elsewhere)
        impossible = _impossible(job, spans, others, len(mine))
        if impossible is not None:
            outcomes[folder] = Outcome(job, folder, error=impossible)
    with ExitStack() as stack:
        opened = {}
        for folder, job in jobs.items():
            if folder in outcomes:
                continue
            run = stack.enter_context(_open(job, len(samples)))
            rescore(store.load_run(run.path), job.benchmark)  # what is there and what comes shall be scored alike
            opened[folder] = Open(job, run)
        for one in opened.values():
            one.pending = set(rendered) - one.run.done_ids()
        if any(one.pending for one in opened.values()):
            generate(list(opened.values()), wanted, rendered, kept)
        for folder, one in opened.items():
            if one.error is None:
                one.run.finish(limit=cfg["limit"])
                outcomes[folder] = _outcome(one.job, store.load_run(folder))
            else:
                one.run.set_status("failed", error=f"{type(one.error).__name__}: {one.error}")
                outcomes[folder] = Outcome(one.job, folder, error=one.error)
    return outcomes


def _share(samples: Sequence[Sample], cfg: Mapping[str, Any]) -> Sequence[Sample]:
    """The samples that this process works on: the first `limit`, of those every n-th from the `shard`'s i-th on."""
    index, number = shard_of(cfg["shard"])
    return samples[: cfg["limit"]][index - 1 :: number]


def _wanted(jobs: Iterable[Job], samples: Sequence[Sample]) -> list[Sample]:
    """The samples that some job misses; prompts of tens of thousands of tokens are not rendered for nothing."""
    missing: set[str] = set()
    for job in jobs:
        recorded = store.load_run(job.folder).samples if (job.folder / "manifest.json").is_file() else []
        retry = job.cfg["retry_oom"]
        done = {record["id"] for record in recorded if not (retry and record["status"] == "oom")}
        missing |= {sample.id for sample in samples} - done
    return [sample for sample in samples if sample.id in missing]


def _open(job: Job, num_samples: int) -> store.Run:
    return store.Run.open(
        job.cfg["paths"]["outputs"] + "/runs",
        label=job.label,
        identity=job.identity,
        config=job.cfg,
        headline=job.benchmark.headline,
        num_samples=num_samples,
        versions=versions(job.variant.method),
        device=models.device(job.model),
        part=None if job.benchmark.column is None else asdict(job.benchmark.column),
        scoring=job.benchmark.scoring(),
        retry_oom=job.cfg["retry_oom"],
        shard=shard_of(job.cfg["shard"]),
        info=slurm_task(),
    )


def slurm_task() -> dict[str, str]:
    """{"slurm": job id, with the task of an array behind it}; {} outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    return {"slurm": job} if job else {}


def _impossible(job: Job, spans: Sequence[int], others: Iterable[int], total: int) -> ValueError | None:
    """The error of a budget that leaves the method no room on any prompt, before anything is computed.

    On some only: those are answered from the most recent tokens, see `Job.variant_for`.

    Args:
        spans: of the prompts to answer, `total` if none is answered yet; others: of those of other shards.
    """
    errors = [error for span in spans if (error := _no_room(job, span)) is not None]
    if errors and len(errors) == total and all(_no_room(job, span) is not None for span in others):
        return errors[-1]
    try:
        made = [job.variant_for(span) for span in spans]
    except ValueError as error:
        return error
    if errors:
        count = sum(variant is not job.variant for variant in made)
        log.warning(
            "%s: on %d of %d prompts the budget is below what the method always keeps; there it keeps the most "
            "recent tokens alone",
            job.folder.name,
            count,
            len(spans),
        )
    return None


def _no_room(job: Job, span: int) -> ValueError | None:
    try:
        job.variant.method.tokens(job.variant.budget, span)
    except ValueError as error:
        return error
    return None
