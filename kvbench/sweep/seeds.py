"""Seeds of a sweep: where nothing draws by one, its job would repeat the job of the default seed and is left out."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kvbench.config.schema import Config
from kvbench.prompts.seeds import IdleSeed
from kvbench.run.jobs import check_config
from kvbench.sweep.compose import Composed
from kvbench.sweep.composer import Composer

log = logging.getLogger(__name__)


def without_idle_seeds(jobs: Sequence[list[str]], composer: Composer) -> list[list[str]]:
    """Return the jobs of a sweep, those that draw nothing under the default seed alone. The log names their methods.

    Args:
        jobs: the overrides of each job.

    Raises:
        IdleSeed: nothing in the whole sweep draws by its seeds.
        ValueError: one line naming another override to change.
    """
    kept: dict[tuple[str, ...], None] = {}
    idle: dict[str, dict[str, None]] = {}
    refused: IdleSeed | None = None
    is_drawn = False
    for job in jobs:
        part = Composed(job, composer.look(job))
        if part.task.seed != Config.seed:
            try:
                check_config(part.task, part.choices)
                is_drawn = True
            except IdleSeed as error:
                refused = refused or error
                idle.setdefault(part.task.method.name, {})[str(part.task.seed)] = None
                job = [line for line in job if line.partition("=")[0].lstrip("+") != "seed"]
                job.append(f"seed={Config.seed}")
        kept[tuple(job)] = None
    if refused is not None and not is_drawn:
        raise refused
    for method, seeds in idle.items():
        log.info("%s: nothing draws by seed=%s, so it runs with seed=%d alone", method, ",".join(seeds), Config.seed)
    return [list(job) for job in kept]
