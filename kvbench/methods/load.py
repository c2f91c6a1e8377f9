"""From YAML to a method: conf/method/<name>.yaml with the user's dials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from kvbench.common.suggest import did_you_mean
from kvbench.methods.dials import PARTS, check_dials, check_keys
from kvbench.methods.method import Method


def method_files(folder: Path) -> dict[str, Path]:
    """Every method there is: name → YAML."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_method(folder: Path, name: str) -> DictConfig:
    """The YAML of a method.

    Raises:
        ValueError: no such method; names the nearest one.
    """
    files = method_files(folder)
    if name not in files:
        raise ValueError(f"method={name}: no such method.{did_you_mean(name, files)}")
    config = OmegaConf.load(files[name])
    assert isinstance(config, DictConfig)
    return config


def split_dials(config: DictConfig) -> dict[str, Any]:
    """The dials of a method's config: its top-level entries without name and parts, resolved."""
    return {str(k): config[k] for k in config if k != "name" and k not in PARTS}


def load(folder: Path, name: str, **overrides: Any) -> Method:
    """Compose the method `name` with dials set to `overrides`; `kvbench.load_method` is this on our conf/.

    Raises:
        ValueError: unknown method or dial, wrong type, impossible value.
    """
    config = read_method(folder, name)
    check_keys(name, overrides, split_dials(config))
    return build(OmegaConf.merge(config, overrides), split_dials(config))


def build(config: Any, defaults: Mapping[str, Any]) -> Method:
    """Instantiate the parts of a composed method config; `defaults` are the dials as in the YAML."""
    dials = split_dials(config)
    check_dials(dials, defaults)
    parts = {part: _part(config[part]) for part in PARTS if config.get(part) is not None}
    method = Method(name=config.name, dials=dials, **parts)
    if method.evicts and None in (method.score, method.layers, method.heads):
        raise ValueError(f"method {method.name}: a method that selects needs score, layers and heads")
    if method.store is not None and method.decode is not None:
        raise ValueError(f"method {method.name}: store and decode cannot be combined")
    return method


def _part(node: DictConfig) -> Any:
    try:
        return hydra.utils.instantiate(node)
    except InstantiationException as error:  # a part's own message says which dial is wrong
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
