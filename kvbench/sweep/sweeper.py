"""The sweeper: every combination of listed values is a job, and the launcher gets all of them at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from kvbench.config.compose import composing, parse
from kvbench.config.hydra_node import check_hydra
from kvbench.sweep.launcher import FusedLauncher

MOST_JOBS = 10_000


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

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch all jobs. Raises ValueError for lists that give no job, or too many."""
        loader = self.hydra_context.config_loader
        lines = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        jobs = list(combinations(parse(lines, loader)))
        self._check(jobs, loader)
        self._write_down(jobs)
        self._plan(jobs, loader)
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
            with composing(job):
                check_hydra(loader.load_sweep_config(self.config, list(job)), loader, self._typed())

    def _plan(self, jobs: Sequence[list[str]], loader: ConfigLoader) -> None:
        """Check all jobs and write their plan for a launcher of Hydra, which starts the first without a look ahead."""
        from kvbench.sweep.compose import check, compose, plan

        if not isinstance(self.launcher, FusedLauncher):
            sweep = compose(loader, self.config, jobs, first=0)
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


def combinations(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Yield the overrides of every job, in the order of the listed values; of equal keys, the last counts.

    Raises:
        ValueError: a list is empty, or there are more than `MOST_JOBS` combinations; nothing is expanded before.
    """
    axes: dict[str, list[str]] = {}
    total = 1
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            axes[key] = [f"{key}={override.get_value_element_as_str()}"]
            continue
        if not override.is_discrete_sweep():
            raise ValueError(f"{override.input_line}: give a list of values, such as {key}=1,2")
        total *= _count(override)
        if total > MOST_JOBS:
            raise ValueError(
                f"{override.input_line}: the sweep would have more than {MOST_JOBS} jobs; list fewer values"
            )
        axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        if not axes[key]:
            raise ValueError(f"{override.input_line}: stands for no value, so there is nothing to sweep")
    for combination in itertools.product(*axes.values()):
        yield list(combination)


def _count(override: Override) -> int:
    """Return how many values a list has, at least 1. Raises ValueError for a range that never ends."""
    value = override.value()
    if not isinstance(value, RangeSweep):
        return max(1, len(list(override.sweep_iterator())))
    numbers = (value.start, value.stop, value.step)
    if any(number is None or not math.isfinite(number) for number in numbers) or not value.step:
        raise ValueError(f"{override.input_line}: a range needs a finite start, stop and step other than 0")
    start, stop, step = (float(number) for number in numbers if number is not None)
    return max(1, min(MOST_JOBS + 1, math.ceil((stop - start) / step)))
