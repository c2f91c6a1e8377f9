"""The options of a group: the YAML files in conf/<group>/, and the combinations of methods."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kvbench.common.paths import conf_dir
from kvbench.common.suggest import did_you_mean
from kvbench.methods.composition import Composition
from kvbench.methods.read import compose


def options(group: str) -> dict[str, Path]:
    """Return what a group offers, name → YAML file; in a sub-group, its name comes first (`shape/llama31_8b`)."""
    folder = conf_dir() / group
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def method(name: str) -> Composition:
    """Return a method or a combination such as `ada_snapkv+kivi`, with all that it inherits.

    Raises:
        ValueError: no such method, or a combination without meaning.
    """
    return compose(conf_dir() / "method", name)


def defaults(group: str, name: str) -> DictConfig:
    """Return an option as shipped, read-only; of a method, with all that it inherits.

    Raises:
        ValueError: the group has no such option; the message names the nearest.
    """
    if group == "method":
        node = OmegaConf.create(method(name).node)
        OmegaConf.set_readonly(node, True)
        return node
    known = options(group)
    if name not in known:
        raise ValueError(f"{group}={name}: no such {group}.{did_you_mean(name, known)}")
    return _inherited(group, known[name])


def shipped(group: str, name: str) -> dict[str, Any]:
    """Return an option as plain data, with its interpolations as written. Raises ValueError as `defaults` does."""
    if group == "method":
        return method(name).node
    node = OmegaConf.to_container(defaults(group, name), resolve=False)
    if not isinstance(node, dict):
        raise ValueError(f"{group}={name}: conf/{group}/{name}.yaml must hold settings, key: value")
    return {str(key): value for key, value in node.items()}


def _inherited(group: str, path: Path) -> DictConfig:
    """Return a file of a group after those of the group that its list `defaults` names, composed as Hydra does it."""
    node = _load(path, path.stat().st_mtime_ns)
    bases = list(node.get("defaults") or [])
    if not bases or not all(isinstance(base, str) for base in bases):  # overrides of other groups, as experiments have
        return node
    if "_self_" not in bases:
        bases.append("_self_")
    joined = OmegaConf.merge(*(_without_list(node) if base == "_self_" else defaults(group, base) for base in bases))
    assert isinstance(joined, DictConfig)
    OmegaConf.set_readonly(joined, True)
    return joined


def _without_list(node: DictConfig) -> DictConfig:
    """Return a file's own settings."""
    own = OmegaConf.masked_copy(node, [key for key in map(str, node) if key != "defaults"])
    assert isinstance(own, DictConfig)
    return own


@cache
def _load(path: Path, stamp: int) -> DictConfig:
    """Parse a file once per process, as long as it stays as it is: a sweep asks for it hundreds of times."""
    node = OmegaConf.load(path)
    if not isinstance(node, DictConfig):
        raise ValueError(f"{path}: must hold settings, key: value")
    OmegaConf.set_readonly(node, True)
    return node
