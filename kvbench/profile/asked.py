"""From the command line to groups of cells: the overrides of kvbench, lists of values, and `profile.*`.

Hydra composes a configuration for every combination of listed values, as it does for a sweep of the main command.
Nothing is fetched or loaded here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from kvbench import config
from kvbench.common.paths import conf_dir
from kvbench.common.suggest import did_you_mean
from kvbench.engine.variant import Variant
from kvbench.methods.dials import split_dials
from kvbench.methods.load import build, load
from kvbench.models import ModelSpec
from kvbench.profile.cells import REFERENCE, Cell, Group, Profile, group_key

AXES = ("context", "batch")
_LEAST = {"context": 1, "batch": 1, "new_tokens": 4, "warmup": 0, "repeats": 1}
_NO_SAMPLES = "the profile reads no samples of a benchmark; leave it out"
_REFUSED = {
    "benchmark": _NO_SAMPLES,
    "limit": _NO_SAMPLES,
    "shard": _NO_SAMPLES,
    "engine.max_rows": "profile.batch says how many rows decode together; leave it out",
    "engine.max_prompts": "profile.batch says how many prompts decode together; leave it out",
    "retry_failed": "a cell that failed is not recorded, so it is always tried again; leave it out",
    "hydra": "the profile runs here, in one process; leave it out",
    "launcher": "the profile runs here, in one process; leave it out",
}


def groups(argv: Sequence[str]) -> list[Group]:
    """The groups that a command line asks for, in its order.

    Raises:
        ValueError, HydraException, OmegaConfBaseException: a mistake in an override; see `kvbench.config.messages`.
    """
    config.register()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        overrides = parser.parse_overrides(list(argv))
        _refuse(overrides)
        settings = _settings([o for o in overrides if _is_ours(o)])
        rest = [o for o in overrides if not _is_ours(o)]
        composed = [(cfg, choices) for cfg, choices in map(_compose, _combinations(rest, parser))]
    made: dict[str, tuple[dict[str, Any], ModelSpec, dict[str, Cell]]] = {}
    for cfg, choices in composed:
        plain, spec, variant = _settle(cfg, choices)
        cells = made.setdefault(group_key(plain), (plain, spec, {}))[2]
        for cell in _cells(variant, plain, settings):
            cells.setdefault(cell.id, cell)
    profile = Profile(settings["new_tokens"], settings["warmup"], settings["repeats"])
    return [Group(plain, spec, profile, _in_order(list(cells.values()))) for plain, spec, cells in made.values()]


def composed_text(argv: Sequence[str]) -> str:
    """The composed configuration as YAML, for `--cfg`; of a list, its first value."""
    group = groups(argv)[0]
    node = {axis: sorted({getattr(cell, axis) for cell in group.cells}) for axis in AXES}
    return OmegaConf.to_yaml(OmegaConf.create({**group.cfg, "profile": node | vars(group.profile)}))


def _is_ours(override: Override) -> bool:
    return override.key_or_group.split(".")[0] == "profile"


def _refuse(overrides: Sequence[Override]) -> None:
    """Settings that would be ignored."""
    for override in overrides:
        for key, reason in _REFUSED.items():
            name = override.key_or_group.replace("/", ".")
            if name == key or name.startswith(f"{key}."):
                raise ValueError(f"{override.input_line}: {reason}")


def _settings(overrides: Sequence[Override]) -> dict[str, Any]:
    """The `profile` node: conf/profile.yaml with the command line's values, checked."""
    shipped = OmegaConf.to_container(OmegaConf.load(conf_dir() / "profile.yaml"))
    assert isinstance(shipped, dict)
    made: dict[str, Any] = {str(key): value for key, value in shipped.items()}
    for override in overrides:
        key, said = override.key_or_group.partition(".")[2], override.input_line
        if key not in made:
            raise ValueError(f"{said}: no such setting.{did_you_mean(key, made)}")
        if override.is_delete() or override.is_add():
            raise ValueError(f"{said}: settings of the profile are set, as in profile.{key}=VALUE")
        value = list(override.sweep_iterator()) if override.is_sweep_override() else override.value()
        values = value if isinstance(value, list) else [value]
        if key not in AXES and isinstance(value, list):
            raise ValueError(f"{said}: one value; lists are for profile.context and profile.batch")
        for one in values or [None]:
            if not isinstance(one, int) or isinstance(one, bool) or one < _LEAST[key]:
                raise ValueError(f"{said}: must be {'integers' if key in AXES else 'an integer'} from {_LEAST[key]} on")
        made[key] = value
    for axis in AXES:
        made[axis] = made[axis] if isinstance(made[axis], list) else [made[axis]]
    return made


def _combinations(overrides: Sequence[Override], parser: OverridesParser) -> Iterator[list[str]]:
    """Every combination of listed values; an experiment's own lists stand for keys that the command line leaves."""
    single = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
    params = hydra.compose("config", single, return_hydra_config=True).hydra.sweeper.get("params") or {}
    named = {o.key_or_group for o in overrides}
    listed = parser.parse_overrides([f"{key}={value}" for key, value in params.items() if key not in named])
    axes = []
    for override in [*listed, *(o for o in overrides if o.is_sweep_override())]:
        if not override.is_discrete_sweep():
            raise ValueError(f"{override.input_line}: give a list of values, or one")
        key = override.get_key_element()
        values = override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_string()]
        axes.append([f"{key}={value}" for value in values])
    for combination in itertools.product(*axes):
        yield [*single, *combination]


def _compose(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """The configuration without Hydra's own node, and group → option."""
    composed = hydra.compose("config", list(overrides), return_hydra_config=True)
    choices = OmegaConf.to_container(composed.hydra.runtime.choices)
    cfg = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    assert isinstance(choices, dict) and isinstance(cfg, DictConfig)
    return cfg, {str(key): value for key, value in choices.items()}


def _settle(cfg: DictConfig, choices: Mapping[str, str]) -> tuple[dict[str, Any], ModelSpec, Variant]:
    """The configuration checked and as plain data, without what only benchmarks read; its model, and its variant."""
    config.check(cfg, choices)
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    plain.pop("benchmark")
    spec = ModelSpec.from_node(plain["model"])
    method = build(cfg.method, split_dials(config.defaults("method", cfg.method.name)))
    variant = Variant(method, plain["budget"] if method.evicts else None)
    return {str(key): value for key, value in plain.items()}, spec, variant


def _cells(variant: Variant, plain: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Cell]:
    """The variant and the full cache at every context length and batch size."""
    kernel = str(plain.get("kernel", "auto"))
    full = Variant(load(conf_dir() / "method", REFERENCE))
    for context, batch in itertools.product(settings["context"], settings["batch"]):
        variant.method.tokens(variant.budget, context)  # says so if the budget is impossible on such a prompt
        for one in (full, variant):
            yield Cell(one, context, batch, kernel)


def _in_order(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    kernels = list(dict.fromkeys(cell.kernel for cell in cells))

    def key(cell: Cell) -> tuple[int, int, int, bool]:
        return cell.context, cell.batch, kernels.index(cell.kernel), cell.variant.method.name != REFERENCE

    return tuple(sorted(cells, key=key))
