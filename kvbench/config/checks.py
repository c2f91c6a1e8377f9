"""The configuration's types and its validation, before torch or any weights are loaded.

Hydra composes conf/ and rejects unknown keys; `check` then compares every value with the YAML it came from, so that
a wrong type or an impossible setting is one line that names the override to change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from kvbench.common.suggest import did_you_mean
from kvbench.methods.dials import PARTS, check_budget, check_keys, check_types, split_dials
from kvbench.paths import conf_dir

GROUPS = ("model", "method", "benchmark")
FREE_FORM = ("hints", "chat_kwargs")  # dictionaries whose keys are the user's
CACHES = ("ragged", "masked")
HOST_KERNELS = ("cpu", "sdpa", "torch")  # they want the host in every step
KERNELS = ("auto", "cuda", "flash_attn", *HOST_KERNELS)


@dataclass
class EngineConfig:
    graph: str = "auto"
    cache: str = "ragged"
    max_rows: int = 64
    max_prompts: int = 8


@dataclass
class PathsConfig:
    outputs: str = "outputs"


@dataclass
class Config:
    """The root node; the groups are typed by their own YAML files."""

    model: Any = MISSING
    method: Any = MISSING
    benchmark: Any = MISSING
    budget: Any = MISSING
    seed: int = 0
    limit: int | None = None
    shard: str | None = None
    kernel: str = "auto"
    retry_oom: bool = False
    threads: int | None = None
    progress: bool = True
    engine: EngineConfig = field(default_factory=EngineConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)


def register() -> None:
    """Make the types known to Hydra; call before composing."""
    ConfigStore.instance().store(name="kvbench_schema", node=Config, provider="kvbench")


def options(group: str) -> dict[str, Path]:
    """What a group offers: name → YAML; of a sub-group with its name before it (`shape/llama31_8b`)."""
    folder = conf_dir() / group
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def defaults(group: str, name: str) -> DictConfig:
    """A group's YAML as shipped.

    Raises:
        ValueError: the group has no such option; names the nearest.
    """
    known = options(group)
    if name not in known:
        raise ValueError(f"{group}={name}: no such {group}.{did_you_mean(name, known)}")
    return _load(known[name], known[name].stat().st_mtime_ns)


@cache
def _load(path: Path, stamp: int) -> DictConfig:
    """Parsed once per process, as long as the file stays as it is: a sweep asks for the same YAML hundreds of times."""
    node = OmegaConf.load(path)
    assert isinstance(node, DictConfig)
    OmegaConf.set_readonly(node, True)
    return node


def check(cfg: DictConfig, choices: Mapping[str, str] | None = None) -> None:
    """Validate a composed configuration; nothing is loaded, fetched or written.

    Args:
        choices: group → option that Hydra composed (`hydra.runtime.choices`); the name of a group must be its option's.

    Raises:
        ValueError: one line naming the override to change.
    """
    for key in map(str, cfg):
        if key not in Config.__dataclass_fields__:
            raise ValueError(f"{key}={cfg[key]}: no such setting.{did_you_mean(key, Config.__dataclass_fields__)}")
    for group in GROUPS:
        node = cfg[group]
        if not isinstance(node, DictConfig) or "name" not in node:
            raise ValueError(f"{group}={node}: choose one of {', '.join(options(group))}")
        option = (choices or {}).get(group, node.name)
        if node.name != option:
            raise ValueError(f"{group}.name={node.name}: must be {option}, the name of conf/{group}/{option}.yaml")
        if group != "method":
            defaults(group, node.name)  # says so if there is none of this name
            path = options(group)[node.name]
            _check_types(group, _settings(node), _plain(path, path.stat().st_mtime_ns))
    _check_hints(cfg)
    _check_method(cfg)
    if cfg.engine.cache not in CACHES:
        raise ValueError(f"engine.cache={cfg.engine.cache}: must be one of {', '.join(CACHES)}")
    if str(cfg.engine.graph).lower() not in ("auto", "true", "false"):
        raise ValueError(f"engine.graph={cfg.engine.graph}: must be one of auto, true, false")
    if cfg.kernel not in KERNELS:
        raise ValueError(f"kernel={cfg.kernel}: no such kernel.{did_you_mean(cfg.kernel, KERNELS)}")
    if cfg.engine.cache == "masked" and cfg.kernel not in ("auto", "torch"):
        raise ValueError(f"kernel={cfg.kernel}: engine.cache=masked attends by torch alone; choose kernel=auto")
    if str(cfg.engine.graph).lower() == "true" and (cfg.engine.cache == "masked" or cfg.kernel in HOST_KERNELS):
        what = "engine.cache=masked" if cfg.engine.cache == "masked" else f"kernel={cfg.kernel}"
        raise ValueError(f"engine.graph=true: {what} works on the host in every step; choose engine.graph=auto")
    for name in ("limit", "threads"):
        if cfg[name] is not None and cfg[name] < 1:
            raise ValueError(f"{name}={cfg[name]}: must be at least 1, or null")
    for name in ("max_rows", "max_prompts"):
        if cfg.engine[name] < 1:
            raise ValueError(f"engine.{name}={cfg.engine[name]}: must be at least 1")
    shard_of(cfg.shard)
    if not str(cfg.paths.outputs).strip():
        raise ValueError("paths.outputs='': name a folder")
    if cfg.seed < 0:
        raise ValueError(f"seed={cfg.seed}: must be at least 0")


def has_budget(method: Mapping[str, Any]) -> bool:
    """Whether a composed method node evicts, so that the budget applies to it."""
    return method.get("select") is not None


def shard_of(text: str | None) -> tuple[int, int]:
    """`i/n` as (i, n); (1, 1) for null. Raises ValueError for anything else."""
    if text is None:
        return 1, 1
    found = re.fullmatch(r"(\d+)/(\d+)", str(text))
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"shard={text}: must be i/n with 1 <= i <= n, such as 1/4, or null")
    return int(found[1]), int(found[2])


def _check_hints(cfg: DictConfig) -> None:
    """A hint that no method reads would do nothing."""
    read = {
        hint for path in options("method").values() for hint in re.findall(r"model\.hints\.(\w+)", path.read_text())
    }
    for hint in map(str, cfg.model.get("hints") or {}):
        if hint not in read:
            raise ValueError(
                f"model.hints.{hint}={cfg.model.hints[hint]}: no method reads it.{did_you_mean(hint, read)}"
            )


def _check_method(cfg: DictConfig) -> None:
    node, name = cfg.method, cfg.method.name
    shipped = defaults("method", name)
    dials, known = split_dials(node), split_dials(shipped)
    check_keys(name, dials, known)
    check_types(dials, known)
    mine, theirs = (OmegaConf.to_container(n, resolve=False) for n in (node, shipped))
    assert isinstance(mine, dict) and isinstance(theirs, dict)
    for part in PARTS:
        if mine.get(part) != theirs.get(part):
            raise ValueError(f"method.{part}: parts are set by the dials ({', '.join(dials)}), or in an own YAML")
    check_budget(cfg.budget)


def _check_types(path: str, node: Mapping[str, Any], shipped: Mapping[str, Any]) -> None:
    """Keys and types of `node` against the YAML it was made from; null takes anything, a float also an integer.

    Both as plain dictionaries, which is ten times as fast: a sweep checks the same settings for every job.
    """
    for key, value in node.items():
        where = f"{path}.{key}"
        if key not in shipped:
            raise ValueError(f"{where}={value}: no such setting.{did_you_mean(key, shipped)}")
        default = shipped[key]
        if isinstance(default, str) and "${" in default:  # an interpolation has no type of its own
            default = value
        if isinstance(default, dict) and isinstance(value, dict):
            if key not in FREE_FORM:
                _check_types(where, value, default)
        elif value is None and key in _nullable(path, shipped.get("_target_")):
            continue
        elif default is not None and not _same_kind(value, default):
            raise ValueError(f"{where}={value}: must be {_kind(default)}, such as {default}")


def _settings(node: DictConfig) -> dict[str, Any]:
    """The node in plain types, interpolations resolved."""
    made = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}


def _nullable(group: str, target: str | None) -> set[str]:
    """Keys that some option of the group with the same class has as null; the class checks them itself."""
    nodes = [_plain(path, path.stat().st_mtime_ns) for path in options(group).values()] if target else []
    alike = [node for node in nodes if node.get("_target_") == target]
    return {key for node in alike for key, value in node.items() if value is None}


@cache
def _plain(path: Path, stamp: int) -> dict[str, Any]:
    content = OmegaConf.to_container(_load(path, stamp), resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _same_kind(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def _kind(default: Any) -> str:
    kinds = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    return kinds.get(type(default), "a list")
