"""The `fused` launcher: Hydra hands over all jobs of a multirun, jobs that share a model and a benchmark run as one.

Composing and checking every job comes first: a mistake in the last job stops the sweep before anything is computed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

log = logging.getLogger(__name__)


class FusedLauncher(Launcher):
    """One process, one plan per group of jobs; a `JobReturn` per job, in order."""

    config: DictConfig
    hydra_context: HydraContext

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hydra.core.hydra_config import HydraConfig

        from kvbench.jobs import prepare
        from kvbench.runner import Outcome, run_jobs
        from kvbench.sweep.finish import present, result

        setup_globals()
        state = Singleton.get_state()
        configs = [self._compose(initial_job_idx + i, list(job)) for i, job in enumerate(job_overrides)]
        try:
            HydraConfig.instance().set_config(configs[0])
            configure_log(configs[0].hydra.job_logging, self.config.hydra.verbose)
            jobs = [prepare(_task(cfg), cfg.hydra.runtime.choices) for cfg in configs]
            number = len({job.group for parts in jobs for job in parts})
            log.info("%d jobs in %d group(s) that share a model and its prefills", len(jobs), number)
            flat = [(index, job) for index, parts in enumerate(jobs) for job in parts]
            outcomes: list[list[Outcome]] = [[] for _ in jobs]
            for (index, _), outcome in zip(flat, run_jobs([job for _, job in flat]), strict=True):
                outcomes[index].append(outcome)
            present([outcome for parts in outcomes for outcome in parts])
            returns = [
                JobReturn(
                    overrides=list(o),
                    cfg=_task(c),
                    hydra_cfg=c,
                    working_dir=str(parts[0].folder),
                    task_name=c.hydra.job.name,
                )
                for o, c, parts in zip(job_overrides, configs, outcomes, strict=True)
            ]
            for made, parts in zip(returns, outcomes, strict=True):
                value = result(parts)
                made.status = JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED
                made.return_value = value
        finally:
            Singleton.set_state(state)
        return returns

    def _compose(self, number: int, overrides: list[str]) -> DictConfig:
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(cfg):
            cfg.hydra.job.id = str(number)
            cfg.hydra.job.num = number
            cfg.hydra.runtime.output_dir = cfg.hydra.sweep.dir
        return cfg


def _task(cfg: DictConfig) -> DictConfig:
    """The configuration without Hydra's own node."""
    from omegaconf import OmegaConf

    task = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
    assert isinstance(task, DictConfig)
    return task
