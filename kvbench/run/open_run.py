"""Jobs whose run folders are open for writing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from kvbench import models, store
from kvbench.config import shard_of
from kvbench.run.hardware import hardware
from kvbench.run.jobs import Job
from kvbench.run.refused import forget_refusal
from kvbench.run.rescore import rescore
from kvbench.run.versions import versions


@dataclass(eq=False)
class OpenRun:
    """A job whose run folder is open for writing.

    Attributes:
        writer: the run folder.
        missing: ids of the samples to compute that are not recorded yet.
        error: what ended the run; None as long as it goes on.
        told_unused: True once the console said that a prompt cannot use all bytes of the budget.
    """

    job: Job
    writer: store.Run
    missing: set[str]
    error: Exception | None = None
    told_unused: bool = False


@contextmanager
def open_run(job: Job, num_samples: int, wanted: Iterable[str]) -> Iterator[OpenRun]:
    """Create or continue the run folder of a job, and wait as long as another process is writing to it.

    What is recorded is scored by the benchmark's present rule, so that old and new records are scored alike.

    Args:
        num_samples: samples of the benchmark.
        wanted: ids of the samples that this process computes where they are missing.

    Raises:
        ValueError: the folder is damaged or cannot be written.
    """
    device = models.device(job.model)
    with store.Run.open(
        job.cfg["paths"]["outputs"] + "/runs",
        label=job.label,
        identity=job.identity,
        config=job.cfg,
        headline=job.benchmark.headline,
        num_samples=num_samples,
        versions=versions(job.variant.method),
        device=device,
        hardware=hardware(device, all_gpus=job.model.device_map is not None),
        part=None if job.benchmark.column is None else asdict(job.benchmark.column),
        scoring=job.benchmark.scoring(),
        retry=job.retry,
        shard=shard_of(job.cfg["shard"]),
        info=slurm_task(),
    ) as writer:
        forget_refusal(job)
        rescore(store.load_run(writer.path, any_scoring=True), job.benchmark)
        yield OpenRun(job, writer, set(wanted) - writer.done_ids())


def slurm_task() -> dict[str, str]:
    """Return {"slurm": job id}, with the number of the task in a job array; {} outside of Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    return {"slurm": job} if job else {}
