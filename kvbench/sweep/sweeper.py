"""The sweeper: every combination of listed values is a job, and the launcher gets all of them at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from kvbench.config.checks import missing_file
from kvbench.config.combinations import combinations, fitting, has_pattern
from kvbench.config.compose import composing, parse
from kvbench.config.hydra_node import check_hydra
from kvbench.sweep.composer import Composer
from kvbench.sweep.launcher import FusedLauncher

log = logging.getLogger(__name__)


class FusedSweeper(Sweeper):
    """The sweeper `hydra/sweeper=fused`.

    Hydra's own expands a list before it counts it, composes every job once more than the launcher, and writes the
    configuration with its secrets to multirun.yaml.
    """

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, Any] | None = None) -> None:
        self.max_batch_size = max_batch_size
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra composed, and create the launcher."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.composer = Composer(hydra_context.config_loader, config)
        if isinstance(self.launcher, FusedLauncher):
            self.launcher.composer = self.composer

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch all jobs. Raises ValueError for lists that give no job, or too many."""
        loader = self.hydra_context.config_loader
        lines = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parsed = parse(lines, loader)
        jobs = fitting(list(combinations(parsed)))
        if any(override.key_or_group == "method" and has_pattern(override) for override in parsed):
            jobs = self._with_files(jobs)
        if any(override.key_or_group == "seed" for override in parsed):
            from kvbench.sweep.seeds import without_idle_seeds

            jobs = without_idle_seeds(jobs, self.composer)
        self._check(jobs, loader)
        self._write_down(jobs)
        self._plan(jobs)
        returned: list[Sequence[JobReturn]] = []
        size = self.max_batch_size or len(jobs)
        for start in range(0, len(jobs), size):
            results = self.launcher.launch(jobs[start : start + size], initial_job_idx=start)
            for result in results:
                _ = result.return_value  # raises what the job raised
            returned.append(results)
        return returned

    def _check(self, jobs: Sequence[list[str]], loader: ConfigLoader) -> None:
        """Check what each job tells Hydra, if an experiment of its own may tell it something."""
        chosen = {line for job in jobs for line in job if line.lstrip("+~").startswith(("experiment", "hydra"))}
        if not chosen:
            return
        for job in jobs:
            composed = self.composer.look(job)
            with composing(job):
                check_hydra(composed, loader, self._typed())

    def _with_files(self, jobs: Sequence[list[str]]) -> list[list[str]]:
        """Return the jobs of a pattern such as `method=glob(*)` without methods that lack a file. The log names them.

        Raises:
            ValueError: no job is left.
        """
        complete, lacking = [], dict[str, None]()
        for job in jobs:
            with composing(job):
                method = self.composer.look(job).method
                error = missing_file(method)
            if error is None:
                complete.append(job)
            else:
                lacking[f"method={method.name}: {error}"] = None
        if not complete:
            raise ValueError(next(iter(lacking)))
        for error in lacking:
            log.warning("left out of the sweep: %s", error)
        return complete

    def _plan(self, jobs: Sequence[list[str]]) -> None:
        """Check all jobs and write their plan for a launcher of Hydra, which starts the first without a look ahead."""
        from kvbench.sweep.compose import check, compose, plan

        if not isinstance(self.launcher, FusedLauncher):
            sweep = compose(self.composer, jobs, first=0)
            check(sweep)
            plan(sweep)

    def _typed(self) -> set[str]:
        """Return the settings of Hydra that the command line sets."""
        return {line.lstrip("+~").partition("=")[0] for line in self.config.hydra.overrides.hydra}

    def _write_down(self, jobs: Sequence[list[str]]) -> None:
        """Write the sweep's jobs and its configuration to multirun.yaml, without secrets and without Hydra's node."""
        from kvbench import store

        names = [str(key) for key in self.config if key != "hydra"]
        content = OmegaConf.to_container(OmegaConf.masked_copy(self.config, names), resolve=False)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(
            {"jobs": [[store.scrub_text(line) for line in job] for job in jobs], "config": store.scrub(content)},
            allow_unicode=True,
            sort_keys=False,
        )
        (folder / "multirun.yaml").write_text(text, encoding="utf-8")
