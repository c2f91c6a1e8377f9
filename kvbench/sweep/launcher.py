"""The launchers: Hydra hands over all jobs of a multirun, jobs that share a model and a benchmark run as one.

`fused` runs them in this process, `fused_slurm` as an array of Slurm tasks. Nothing heavy is imported at the top.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from kvbench.sweep.composer import Composer

if TYPE_CHECKING:
    from kvbench.run.runner import Outcome
    from kvbench.sweep.compose import Composed


class FusedLauncher(Launcher):
    """One process, one plan per group of jobs; a `JobReturn` per job, in order."""

    config: DictConfig
    hydra_context: HydraContext
    composer: Composer

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.composer = Composer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from kvbench.run.runner import present_outcomes
        from kvbench.sweep.compose import check, compose, plan, returned

        setup_globals()
        state = Singleton.get_state()
        try:
            sweep = compose(self.composer, job_overrides, initial_job_idx)
            HydraConfig.instance().set_config(sweep[0].config)
            configure_log(sweep[0].config.hydra.job_logging, self.config.hydra.verbose)
            check(sweep)
            plan(sweep)
            outcomes = self.compute(sweep)
            if outcomes is None:
                return [returned(part, None) for part in sweep]
            present_outcomes(outcomes)
            rest = iter(outcomes)
            return [returned(part, [next(rest) for _ in part.jobs]) for part in sweep]
        finally:
            Singleton.set_state(state)

    def compute(self, sweep: Sequence[Composed]) -> list[Outcome] | None:
        """Compute what is missing and return the outcomes of all jobs in order, or None if they come later."""
        from kvbench.run.runner import run_jobs

        return run_jobs([job for part in sweep for job in part.jobs])


class FusedSlurmLauncher(FusedLauncher):
    """One Slurm task per group of jobs, or per shard of it; truth is in the run folders, never in Slurm's states."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from kvbench.sweep.slurm.settings import available, checked

        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.slurm = checked(self.settings)
        available()

    def compute(self, sweep: Sequence[Composed]) -> list[Outcome] | None:
        from kvbench.sweep.slurm.launch import compute

        return compute(sweep, self.slurm)
