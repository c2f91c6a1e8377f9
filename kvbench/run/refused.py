"""Refused jobs: the reason is kept in the outputs, so that `kvbench status` shows it and Slurm is not asked in vain.

A command checks its jobs whatever was refused before. Only the Slurm launcher goes by what is kept, where the request
and the versions are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from kvbench import models
from kvbench.common import clock
from kvbench.config import shard_of
from kvbench.run.jobs import Job
from kvbench.run.preflight import asked_kind, check_device, check_fused, check_method, check_save
from kvbench.run.source_hash import hash_sources
from kvbench.run.versions import versions
from kvbench.store.refusals import delete_refusal, read_refusal, write_refusal
from kvbench.store.schema import Refusal

log = logging.getLogger(__name__)

_CHECKS = ("jobs", "preflight", "samples")  # the modules that refuse


def keep_refusals(errors: Mapping[Job, Exception], final: bool) -> None:
    """Write down why jobs were refused. What cannot be written is logged: the reason is told anyway.

    Args:
        final: the same request is refused on every machine. Data may be mended, and another machine may have a GPU.
    """
    for job, error in errors.items():
        refusal: Refusal = {
            "reason": str(error),
            "final": final,
            "limit": job.cfg["limit"],
            "retry": sorted(job.retry),
            "kept": job.cfg["save"]["kept"],
            "shard": _shard(job),
            "versions": _versions(job),
            "time": clock.now(),
        }
        try:
            write_refusal(job.folder, refusal)
        except OSError as problem:
            log.warning("%s: its refusal could not be written (%s)", job.folder.name, problem.strerror)


def forget_refusal(job: Job) -> None:
    """Delete the refusal of a job that begins now, or is submitted to a queue."""
    delete_refusal(job.folder, _shard(job))


def refused_without_samples(jobs: Iterable[Job]) -> dict[Path, ValueError]:
    """Return run folder → error of the jobs that are refused, as far as that is known without samples and weights.

    Either a check says so now, or the same request was refused before by the same versions. The machine that asks need
    not be like the one that computes: what `model.device=auto` means there is not known.
    """
    errors: dict[Job, ValueError] = {}
    known: dict[Path, ValueError] = {}
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.group, []).append(job)
    shapes: list[tuple[models.ModelSpec, models.Shape]] = []
    for group in groups.values():
        spec = group[0].model
        kind = asked_kind(spec)
        try:
            check_fused(group[0].cfg, spec)
            shape = _shape(spec, shapes)
        except ValueError as error:
            errors |= dict.fromkeys(group, error)
            continue
        for job in group:
            try:
                check_method(job, shape)
                check_save(job)
                if kind != "auto":
                    check_device(job, kind)
            except ValueError as error:
                errors[job] = error
                continue
            reason = _earlier(job)
            if reason is not None:
                known[job.folder] = ValueError(reason)
    keep_refusals(errors, final=False)
    return known | {job.folder: error for job, error in errors.items()}


def _shape(spec: models.ModelSpec, known: list[tuple[models.ModelSpec, models.Shape]]) -> models.Shape:
    """Return the shape of a model, computed once per model: that builds it without weights."""
    for other, shape in known:
        if other == spec:
            return shape
    known.append((spec, models.shape(spec)))
    return known[-1][1]


def _earlier(job: Job) -> str | None:
    """Return why the same request was refused before by the same versions, on any machine; None if it was not."""
    try:
        refusal = read_refusal(job.folder)
    except ValueError:  # damaged; `kvbench status` says so
        return None
    if refusal is None or not refusal["final"]:
        return None
    asked = job.cfg["limit"], sorted(job.retry), job.cfg["save"]["kept"], _versions(job)
    is_same = asked == (refusal["limit"], refusal["retry"], refusal["kept"], refusal["versions"])
    return refusal["reason"] if is_same else None


def _shard(job: Job) -> str | None:
    return None if shard_of(job.cfg["shard"]) == (1, 1) else str(job.cfg["shard"])


def _versions(job: Job) -> dict[str, str]:
    return versions(job.variant.method) | {"checks": _checks_hash()}


@cache
def _checks_hash() -> str:
    return hash_sources(Path(__file__).with_name(f"{name}.py") for name in _CHECKS)
