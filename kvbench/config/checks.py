"""The validation of a composed configuration, before torch or any weights are loaded.

Hydra composes conf/ and rejects unknown keys. `check` compares every value with the types of the class that reads it,
so that a wrong type or an impossible setting is one line that names the override to change.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kvbench.common.kinds import CACHES, SWITCHES
from kvbench.common.suggest import did_you_mean
from kvbench.config.annotations import check_value, settings_of
from kvbench.config.groups import defaults, method, options, shipped
from kvbench.config.interpolations import check_interpolations, texts
from kvbench.config.loggers import check_loggers
from kvbench.config.schema import GROUPS, HOST_KERNELS, KERNELS, NODES, Config
from kvbench.methods.budgets import check_budget
from kvbench.methods.dials import FIXED, PARTS, check_keys, check_types, split_dials
from kvbench.methods.files import file_dials, names_file
from kvbench.models import ModelSpec

_HINT = re.compile(r"model\.hints\.(\w+)")
_LARGEST_SEED = 2**32 - 1  # of numpy's generators
_MOST_SHARDS = 10_000


def check(cfg: DictConfig, choices: Mapping[str, str] | None = None) -> None:
    """Validate a composed configuration; nothing is loaded, fetched or written.

    Args:
        choices: group → option that Hydra composed (`hydra.runtime.choices`); the name of a group must be its option's.

    Raises:
        ValueError: one line naming the override to change.
    """
    _check_keys(cfg)
    check_interpolations(OmegaConf.to_container(cfg, resolve=False))
    for group in GROUPS:
        _check_name(group, cfg[group], choices or {})
    plain = _plain(cfg)
    ModelSpec.from_node(plain["model"])
    check_hints(plain["model"])
    _check_benchmark(plain["benchmark"])
    _check_method(cfg)
    _check_engine(plain)
    _check_numbers(plain)
    shard_of(plain["shard"])
    check_loggers(plain["logger"])
    _check_outputs(plain["paths"]["outputs"])


def has_budget(method: Mapping[str, Any]) -> bool:
    """Return True if a budget applies to a composed method node.

    A method without layer budgets keeps everything, or decides by itself how many tokens stay. A look reads as many
    tokens as the budget says.
    """
    return method.get("layers") is not None or method.get("look") is not None


def shard_of(text: str | None) -> tuple[int, int]:
    """Return `i/n` as (i, n), and (1, 1) for null. Raises ValueError for anything else."""
    if text is None:
        return 1, 1
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", str(text), re.ASCII)
    if not match or not 1 <= int(match[1]) <= int(match[2]) <= _MOST_SHARDS:
        raise ValueError(f"shard={text}: must be i/n with 1 <= i <= n <= {_MOST_SHARDS}, such as 1/4, or null")
    return int(match[1]), int(match[2])


def _check_keys(cfg: DictConfig) -> None:
    """Refuse settings that nothing reads."""
    for key in map(str, cfg):
        if key not in Config.__dataclass_fields__:
            raise ValueError(f"{key}={cfg[key]}: no such setting.{did_you_mean(key, Config.__dataclass_fields__)}")
    for name, node in NODES.items():
        known = [field.name for field in fields(node)]
        for key in map(str, cfg[name]):
            if key not in known:
                raise ValueError(f"{name}.{key}={cfg[name][key]}: no such setting.{did_you_mean(key, known)}")


def _check_name(group: str, node: object, choices: Mapping[str, str]) -> None:
    """Check that a group was chosen, and that its name is that of its file."""
    if not isinstance(node, DictConfig) or "name" not in node:
        raise ValueError(f"{group}={node}: choose one of {', '.join(options(group))}")
    option = choices.get(group, node.name)
    if group == "method" and "+" in str(option):
        option = method(option).name  # combinations have one name, whatever the order of the names
    if node.name != option:
        raise ValueError(f"{group}.name={node.name}: must be {option}, the name of conf/{group}/{option}.yaml")
    known = shipped(group, str(option))
    if node.get("_target_") != known.get("_target_"):
        raise ValueError(f"{group}._target_={node.get('_target_')}: must stay as in conf/{group}/{option}.yaml")


def check_hints(model: Mapping[str, Any]) -> None:
    """Raise ValueError for a hint in a `model` node that no method reads."""
    given = model.get("hints") or {}
    read = _read_hints(tuple((path, path.stat().st_mtime_ns) for path in options("method").values())) if given else ()
    for hint, value in given.items():
        if hint not in read:
            raise ValueError(f"model.hints.{hint}={value}: no method reads it.{did_you_mean(hint, read)}")


@cache
def _read_hints(files: Sequence[tuple[Path, int]]) -> frozenset[str]:
    """Return the hints that some method reads, once per process as long as all files stay as they are."""
    lines = (text for path, _ in files for _, text in texts(shipped("method", path.stem)))
    return frozenset(hint for text in lines for hint in _HINT.findall(text))


def _check_benchmark(node: Mapping[str, Any]) -> None:
    """Check the settings of a benchmark against the annotations of its class."""
    kinds = settings_of(str(node["_target_"]))
    for key, value in node.items():
        if key == "_target_":
            continue
        if key not in kinds:
            raise ValueError(f"benchmark.{key}={value}: no such setting.{did_you_mean(key, kinds)}")
        check_value(f"benchmark.{key}", value, kinds[key])


def _check_method(cfg: DictConfig) -> None:
    """Check names and types of the dials, and that the parts are as shipped. The parts check values when built."""
    node, name = cfg.method, cfg.method.name
    dials, known = split_dials(node), split_dials(defaults("method", name))
    check_keys(name, dials, known)
    check_types(dials, known)
    file_dials(dials, known)
    given, ours = OmegaConf.to_container(node, resolve=False), shipped("method", name)
    for part in (*FIXED, *PARTS):
        if part != "name" and isinstance(given, dict) and given.get(part) != ours.get(part):
            raise ValueError(f"method.{part}: parts are set by the dials ({', '.join(dials)}), or in an own YAML")
    check_budget(cfg.budget)


def missing_file(node: DictConfig) -> str | None:
    """Return why a file that a dial of a composed method names cannot be read, in one line; None if all can."""
    known = split_dials(defaults("method", node.name))
    if not any(names_file(default) for default in known.values()):
        return None
    try:
        file_dials(split_dials(node), known)
    except ValueError as error:
        return str(error)
    return None


def _check_engine(cfg: Mapping[str, Any]) -> None:
    """Check cache, graph and kernel, and that they go together."""
    engine, kernel = cfg["engine"], cfg["kernel"]
    graph = str(engine["graph"]).lower()
    if engine["cache"] not in CACHES:
        raise ValueError(f"engine.cache={engine['cache']}: must be one of {', '.join(CACHES)}")
    for key in ("graph", "fused"):
        if str(engine[key]).lower() not in SWITCHES:
            raise ValueError(f"engine.{key}={engine[key]}: must be one of {', '.join(SWITCHES)}")
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel}: no such kernel.{did_you_mean(kernel, KERNELS)}")
    if engine["cache"] == "masked" and kernel not in ("auto", "torch"):
        raise ValueError(f"kernel={kernel}: engine.cache=masked attends by torch alone; choose kernel=auto")
    if graph == "true" and (engine["cache"] == "masked" or kernel in HOST_KERNELS):
        what = "engine.cache=masked" if engine["cache"] == "masked" else f"kernel={kernel}"
        raise ValueError(f"engine.graph=true: {what} works on the host in every step; choose engine.graph=auto")


def _check_numbers(cfg: Mapping[str, Any]) -> None:
    """Check the ranges of the root's numbers. Torch ends the process when it is given too many threads."""
    cores = os.cpu_count() or 1
    ranges = (
        ("limit", cfg["limit"], 1, 2**53, ", or null"),
        ("threads", cfg["threads"], 1, max(cores, 64), f", or null ({cores} cores here)"),
        ("seed", cfg["seed"], 0, _LARGEST_SEED, ""),
        ("engine.max_rows", cfg["engine"]["max_rows"], 1, 2**20, ""),
        ("engine.max_prompts", cfg["engine"]["max_prompts"], 1, 2**20, ""),
    )
    for name, value, least, most, more in ranges:
        if value is None and more:
            continue
        if not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise ValueError(f"{name}={value}: must be {bound}{more}")


def _check_outputs(folder: object) -> None:
    if not str(folder).strip() or "\0" in str(folder):
        raise ValueError(f"paths.outputs={folder!r}: name a folder")


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain data, interpolations resolved."""
    content = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}
