"""The jobs of a sweep: composed from Hydra's list of overrides, checked, planned, and their outcomes returned.

Shared by the launchers. Composing and checking all comes before computing any: a mistake in the last job stops the
sweep before the first.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict

from kvbench.cli.arguments import shell_command
from kvbench.config.combinations import typed
from kvbench.run.jobs import Job, check_config, jobs_of, say_budgets
from kvbench.run.plan import write_plans
from kvbench.run.runner import Outcome, result
from kvbench.sweep.composer import Composer

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
        task = OmegaConf.masked_copy(self.config, [str(key) for key in self.config if key != "hydra"])
        assert isinstance(task, DictConfig)
        return task

    @property
    def choices(self) -> dict[str, str]:
        """Group → option that Hydra composed."""
        choices = OmegaConf.to_container(self.config.hydra.runtime.choices)
        assert isinstance(choices, dict)
        return {str(key): value for key, value in choices.items()}


def compose(composer: Composer, job_overrides: Sequence[Sequence[str]], first: int) -> list[Composed]:
    """Compose the configuration of every job, numbered from `first`."""
    sweep = []
    for number, overrides in enumerate(job_overrides, start=first):
        composed = composer.take(overrides)
        with open_dict(composed):
            composed.hydra.job.id = str(number)
            composed.hydra.job.num = number
            composed.hydra.runtime.output_dir = composed.hydra.sweep.dir
        sweep.append(Composed(list(overrides), composed))
    return sweep


def check(sweep: Sequence[Composed]) -> None:
    """Check every configuration and say which runs it asks for. Raises ValueError naming the override to change."""
    # Before a model's first file, which may be fetched.
    checked = [check_config(part.task, part.choices) for part in sweep]
    say_budgets(checked)
    for part, config in zip(sweep, checked, strict=True):
        part.jobs = jobs_of(config)
    number = len({job.group for part in sweep for job in part.jobs})
    log.info("%d jobs in %d group(s) that share a model and its prefills", len(sweep), number)


def plan(sweep: Sequence[Composed]) -> None:
    """Write down, before anything is computed, which runs this command asks for: one plan per outputs folder."""
    write_plans([job for part in sweep for job in part.jobs], shell_command(typed(sys.argv[1:])))


def returned(part: Composed, outcomes: Sequence[Outcome] | None) -> JobReturn:
    """Return a job's result in Hydra's form. Outcomes of None mean that its runs are computed later, elsewhere."""
    job_return = JobReturn(
        overrides=part.overrides,
        cfg=part.task,
        hydra_cfg=part.config,
        working_dir=str(part.jobs[0].folder),
        task_name=part.config.hydra.job.name,
    )
    value = None if outcomes is None else result(outcomes)
    job_return.status = JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED
    job_return.return_value = value
    return job_return
