"""Composition of groups of cells from a command line: overrides of kvbench, lists of values, and `profile.*`.

Overrides are read, combined and checked as for a sweep of `kvbench run`. Nothing is downloaded or loaded here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from kvbench import config
from kvbench.common.paths import conf_dir
from kvbench.config.combinations import combinations, fitting
from kvbench.config.compose import check_read, compose_job, composing, inspect, parse
from kvbench.engine.variant import Variant
from kvbench.methods.budgets import ByteShare
from kvbench.methods.method import Method
from kvbench.models import ModelSpec
from kvbench.profile.cells import Cell, Group, group_key
from kvbench.profile.crossover import MEMORY
from kvbench.profile.settings import ProfileSettings, is_profile_setting, profile_settings
from kvbench.run.jobs import variant_of

FULL_CACHE = Variant(Method("fullkv"))  # a method without parts keeps every token; ratios refer to it
_MOST_CELLS = 10_000
_READ = (  # settings of `kvbench run` that count here
    *("model", "method", "budget", "kernel", "threads", "seed", "retry_oom", "progress", "paths", "experiment"),
    *("engine.cache", "engine.graph", "engine.fused"),
)
_NO_SAMPLES = "the profile reads no samples of a benchmark; leave it out"
_REFUSED = {
    "benchmark": _NO_SAMPLES,
    "limit": _NO_SAMPLES,
    "shard": _NO_SAMPLES,
    "engine.max_rows": "profile.batch says how many rows decode together, or profile.pool; leave it out",
    "engine.max_prompts": "profile.batch says how many prompts decode together, or profile.pool; leave it out",
    "hydra": "the profile runs here, in one process; leave it out",
    "launcher": "the profile runs here, in one process; leave it out",
}


def groups(argv: Sequence[str]) -> list[Group]:
    """Return the groups of cells that a command line asks for, in its order.

    Raises:
        ValueError: one line naming the override to change.
    """
    config.register()
    ours: list[Override] = []
    others: list[Override] = []
    for override in parse(argv):
        (ours if is_profile_setting(override) else others).append(override)
    _refuse(others)
    settings = profile_settings(ours)
    parts: dict[str, tuple[dict[str, Any], ModelSpec, dict[str, Cell]]] = {}
    total = 0
    for cfg, choices in _composed([str(override.input_line) for override in others]):
        plain, spec, variant = _settle(cfg, choices)
        cells = parts.setdefault(group_key(plain), (plain, spec, {}))[2]
        if settings.pool and plain["engine"]["cache"] == "masked":
            raise ValueError(
                "engine.cache=masked: it keeps all tokens, so a pool holds no more rows of a method; leave it out"
            )
        total += len(settings.context) * len(settings.pool or settings.batch)
        if total > _MOST_CELLS:
            raise ValueError(f"{' '.join(argv)}: more than {_MOST_CELLS} cells; list fewer values")
        for cell in _cells(variant, plain, settings):
            cells.setdefault(cell.id, cell)
    return [Group(plain, spec, settings, _in_order(list(cells.values()))) for plain, spec, cells in parts.values()]


def composed_text(argv: Sequence[str]) -> str:
    """Return the composed configuration as YAML, for `--cfg`. Of listed values it has the first."""
    group = groups(argv)[0]
    return OmegaConf.to_yaml(OmegaConf.create({**group.cfg, "profile": group.settings.shown()}))


def _refuse(overrides: Sequence[Override]) -> None:
    """Refuse settings that would be ignored. Raises ValueError."""
    for override in overrides:
        name = override.key_or_group.replace("/", ".")
        for key, reason in _REFUSED.items():
            if name == key or name.startswith(f"{key}."):
                raise ValueError(f"{override.input_line}: {reason}")
    check_read(overrides, "profile", _READ)


def _composed(argv: Sequence[str]) -> Iterator[tuple[DictConfig, dict[str, str]]]:
    """Yield the configuration of every combination of listed values, and what it chose: group → option.

    The lists of an experiment count as well, for keys that the command line does not set.
    """
    listed = inspect(argv).hydra.sweeper.get("params") or {}
    with composing(argv), hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        lines = [*(f"{key}={value}" for key, value in listed.items()), *argv]
        for job in fitting(list(combinations(parse(lines, GlobalHydra.instance().config_loader())))):
            yield compose_job(job)


def _settle(cfg: DictConfig, choices: Mapping[str, str]) -> tuple[dict[str, Any], ModelSpec, Variant]:
    """Check a configuration; return it as plain data without its benchmark, its model, and its variant."""
    config.check(cfg, choices)
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    plain.pop("benchmark")
    spec = ModelSpec.from_node(plain["model"])
    return {str(key): value for key, value in plain.items()}, spec, variant_of(cfg)


def _cells(variant: Variant, plain: Mapping[str, Any], settings: ProfileSettings) -> Iterator[Cell]:
    """Yield the full cache and the variant at every context length and batch size, or size of a pool.

    Of pools, there is also one as large as the memory allows, for the full cache alone. It comes first: without it,
    half of the comparison is missing.
    """
    kernel = str(plain.get("kernel", "auto"))
    for context in settings.context:
        if not isinstance(variant.budget, ByteShare):  # whose tokens depend on the model
            variant.method.tokens(variant.budget, context)  # raises ValueError if the budget is impossible
        if settings.pool:
            yield Cell(FULL_CACHE, context, 0, kernel, MEMORY)
        points: list[tuple[int, int | str | None]] = [(0, pool) for pool in settings.pool]
        points = points or [(batch, None) for batch in settings.batch]
        for (batch, pool), shown in itertools.product(points, (FULL_CACHE, variant)):
            yield Cell(shown, context, batch, kernel, pool)


def _in_order(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Sort cells by context, batch or pool (as they are listed), and kernel, the full cache first."""
    kernels, pools = (list(dict.fromkeys(of)) for of in ([c.kernel for c in cells], [c.pool for c in cells]))

    def place(cell: Cell) -> tuple[int, ...]:
        at = cell.context, cell.batch, pools.index(cell.pool), kernels.index(cell.kernel)
        return *at, not cell.is_full_cache

    return tuple(sorted(cells, key=place))
