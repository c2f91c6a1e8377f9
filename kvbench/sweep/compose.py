"""From Hydra's list of overrides to checked jobs, and from their outcomes to what Hydra wants returned.

Shared by the launchers. Composing and checking all comes before computing any: a mistake in the last job stops the
sweep before the first.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict

from kvbench import store
from kvbench.cli.arguments import shell_command
from kvbench.config.compose import composing
from kvbench.run.finish import result
from kvbench.run.jobs import Job, jobs_of, settle
from kvbench.run.runner import Outcome

log = logging.getLogger(__name__)


@dataclass
class Composed:
    """One job of the sweep as Hydra counts them: a configuration, which is several runs if its benchmark is a suite."""

    overrides: list[str]
    config: DictConfig
    jobs: list[Job] = field(default_factory=list)

    @cached_property
    def task(self) -> DictConfig:
        """The configuration without Hydra's own node, interpolations as they are written."""
        made = OmegaConf.masked_copy(self.config, [str(key) for key in self.config if key != "hydra"])
        assert isinstance(made, DictConfig)
        return made

    @property
    def choices(self) -> dict[str, str]:
        """Group → option that Hydra composed."""
        found = OmegaConf.to_container(self.config.hydra.runtime.choices)
        assert isinstance(found, dict)
        return {str(key): value for key, value in found.items()}


def compose(
    loader: ConfigLoader, master: DictConfig, job_overrides: Sequence[Sequence[str]], first: int
) -> list[Composed]:
    """Compose the configuration of every job, numbered from `first`."""
    made = []
    for number, overrides in enumerate(job_overrides, start=first):
        with composing(overrides):
            composed = loader.load_sweep_config(master, list(overrides))
        with open_dict(composed):
            composed.hydra.job.id = str(number)
            composed.hydra.job.num = number
            composed.hydra.runtime.output_dir = composed.hydra.sweep.dir
        made.append(Composed(list(overrides), composed))
    return made


def check(sweep: Sequence[Composed]) -> None:
    """Check every configuration and say which runs it asks for. Raises ValueError naming the override to change."""
    checked = [settle(one.task, one.choices) for one in sweep]  # before a model's first file, which may be fetched
    for one, config in zip(sweep, checked, strict=True):
        one.jobs = jobs_of(config)
    number = len({job.group for one in sweep for job in one.jobs})
    log.info("%d jobs in %d group(s) that share a model and its prefills", len(sweep), number)


def plan(sweep: Sequence[Composed]) -> None:
    """Write down, before anything is computed, which runs this command asks for: one plan per outputs folder."""
    folders: dict[str, list[tuple[Path, int | None]]] = {}
    for one in sweep:
        for job in one.jobs:
            folders.setdefault(job.cfg["paths"]["outputs"], []).append((job.folder, job.cfg["limit"]))
    for outputs, runs in folders.items():
        store.write_plan(outputs, shell_command(sys.argv[1:]), runs)


def returned(one: Composed, outcomes: Sequence[Outcome] | None) -> JobReturn:
    """What Hydra wants of a job, from the outcomes of its runs; None: they are computed later, elsewhere."""
    made = JobReturn(
        overrides=one.overrides,
        cfg=one.task,
        hydra_cfg=one.config,
        working_dir=str(one.jobs[0].folder),
        task_name=one.config.hydra.job.name,
    )
    value = None if outcomes is None else result(outcomes)
    made.status = JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED
    made.return_value = value
    return made
