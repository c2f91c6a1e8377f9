"""Methods built from their YAML files with the user's dials."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from kvbench.common.text import one_line
from kvbench.methods.base import Heads, Layers, Merge, Score, Select
from kvbench.methods.composition import references
from kvbench.methods.decoding import DecodePolicy, Decoding
from kvbench.methods.dials import PARTS, as_plain_number, check_keys, check_types, split_dials
from kvbench.methods.eviction import Eviction
from kvbench.methods.fields import InvalidField
from kvbench.methods.method import Method
from kvbench.methods.read import read_method
from kvbench.methods.storage import Store

_PROTOCOLS: dict[str, type] = dict(zip(PARTS, (Score, Layers, Heads, Select, Merge, Store, DecodePolicy), strict=True))
_EVICTION = ("score", "layers", "heads", "select")
_POLICY_DIALS = ("phase", "interval", "buffer", "budget")  # of every decode policy; its own class does not know them
_DIAL = re.compile(r"\$\{\.\.(\w+)\}")


def load(folder: Path, name: str, **overrides: Any) -> Method:
    """Compose the method `name` with dials set to `overrides`; `kvbench.load_method` is this on our conf/.

    Raises:
        ValueError: unknown method or dial, wrong type, impossible value.
    """
    config = read_method(folder, name)
    defaults = split_dials(config)
    check_keys(name, overrides, defaults)
    overrides = {key: as_plain_number(value) for key, value in overrides.items()}
    check_types(overrides, defaults)  # before they are merged: a config holds plain types alone
    return build(OmegaConf.merge(config, overrides), defaults)


def build(config: Any, defaults: Mapping[str, Any]) -> Method:
    """Build a method from its composed config; `defaults` are the dials as in the YAML.

    Raises:
        ValueError: one line naming the dial to change, or what is wrong with the parts of the YAML.
    """
    dials = split_dials(config)
    check_types(dials, defaults)
    dial_of = _dials_by_field(config)
    parts = {part: _build_part(part, config[part], dial_of) for part in PARTS if config.get(part) is not None}
    evicting = {part: parts.pop(part) for part in _EVICTION if part in parts}
    _check_combination(config.name, evicting, parts)
    _check_use(config, dials)
    try:
        eviction = Eviction(**evicting) if evicting else None
    except ValueError as error:
        raise ValueError(f"method={config.name}: {error}") from None
    return Method(config.name, dials, eviction, **parts, dial_of=dial_of)


def _check_combination(name: str, evicting: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Raise ValueError for parts that have no meaning together."""
    if evicting and "select" not in evicting:
        raise ValueError(f"method={name}: a method that drops tokens also needs select in its YAML")
    if "merge" in parts and not evicting:
        raise ValueError(f"method={name}: merge needs score, layers, heads and select")
    if "decode" in parts and "score" not in evicting:
        raise ValueError(f"method={name}: decode needs score, layers, heads and select")
    if "decode" in parts and "store" in parts:
        raise ValueError(f"method={name}: decode cannot be combined with store")


def method_identity(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a composed method node as it enters the identity of a run: our own parts by class name alone.

    Where the file of a part lies does not change what it computes; a class from elsewhere keeps its full path.
    """
    identity = {str(key): value for key, value in node.items() if key != "test"}
    for part in PARTS:
        if identity.get(part) is not None:
            target = str(identity[part]["_target_"])
            is_ours = target.startswith("kvbench.methods.")
            identity[part] = identity[part] | {"_target_": target.rpartition(".")[2] if is_ours else target}
    return identity


def _check_use(config: DictConfig, dials: Mapping[str, Any]) -> None:
    """Raise ValueError for a dial that no part and no other dial interpolates: to set it would change nothing."""
    used = set(references(OmegaConf.to_container(config, resolve=False)))
    for dial in dials:
        if dial not in used:
            raise ValueError(f"method.{dial}: no part of {config.name} reads it; write ${{..{dial}}} where it belongs")


def _dials_by_field(config: DictConfig) -> dict[tuple[str, str], str]:
    """Return {(part, field): dial} for the fields that a YAML fills with a dial, as in `window: ${..window}`."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    matches = {
        (part, str(field)): _DIAL.fullmatch(value)
        for part in PARTS
        for field, value in (plain.get(part) or {}).items()
        if isinstance(value, str)
    }
    return {key: match[1] for key, match in matches.items() if match}


def _build_part(part: str, node: DictConfig, dial_of: Mapping[tuple[str, str], str]) -> Any:
    """Instantiate a part and check that it keeps its contract."""
    try:
        built = _decoding(node) if part == "decode" else hydra.utils.instantiate(node)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, InvalidField):
            raise ValueError(cause.text(lambda field: dial_of.get((part, field), f"{part}.{field}"))) from None
        raise ValueError(f"method.{part}: {one_line(str(cause or error)) or type(cause).__name__}") from cause
    target, protocol = node.get("_target_"), _PROTOCOLS[part]
    own = built.policy if isinstance(built, Decoding) else built
    if not isinstance(own, protocol):
        raise ValueError(f"method.{part}={target}: must inherit from {protocol.__module__}.{protocol.__name__}")
    try:
        hash(built)
    except TypeError:
        raise ValueError(
            f"method.{part}={target}: must be hashable; decorate it with @dataclass(frozen=True)"
        ) from None
    hidden = set(vars(own)) - {f.name for f in fields(own)} if is_dataclass(own) else set()
    if hidden:  # two parts that differ in it would count as equal and share their results
        names = ", ".join(sorted(hidden))
        raise ValueError(f"method.{part}={target}: {names} must be a field; decorate it with @dataclass(frozen=True)")
    return built


def _decoding(node: DictConfig) -> Any:
    """Return a decode policy with the dials that every policy has, which stand next to its own in the YAML."""
    dials = {key: node[key] for key in _POLICY_DIALS if key in node}
    policy = hydra.utils.instantiate({key: node[key] for key in node if key not in _POLICY_DIALS})
    return Decoding(policy, **dials) if isinstance(policy, DecodePolicy) else policy
