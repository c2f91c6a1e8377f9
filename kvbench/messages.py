"""Hydra's and OmegaConf's errors in one line that names the override to change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from kvbench.config import GROUPS, Config, defaults, options
from kvbench.methods.dials import PARTS, did_you_mean
from kvbench.paths import conf_dir


def one_line(error: BaseException, argv: Sequence[str]) -> str:
    """The message of a configuration error, from the command line that caused it."""
    text = str(error).strip()
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return _unknown_key(unknown[1], argv)
    option = re.search(r"Could not find '([^'/]+)/([^']+)'", text)
    if option:
        group, name = option.groups()
        return f"{group}={name}: no such {group}.{did_you_mean(name, options(group))}"
    merging = re.search(r"Error merging override (.+)", text)
    if merging and error.__cause__ is not None:
        return f"{merging[1].strip()}: {str(error.__cause__).splitlines()[0]}"
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _unknown_key(key: str, argv: Sequence[str]) -> str:
    """An override of a key that is not there; suggests one that is."""
    group, _, rest = key.partition(".")
    said = _said(key, argv)
    if group in GROUPS and rest:
        node: Any = defaults(group, _chosen(group, argv))
        *path, last = rest.split(".")
        for part in path:
            node = node.get(part) or {}
        known = [str(k) for k in node if path or k not in ("name", "_target_", *PARTS)]
        return f"{said}: {_chosen(group, argv)} has no setting {last!r}.{did_you_mean(last, known)}"
    return f"{said}: no such setting.{did_you_mean(key, Config.__dataclass_fields__)}"


def _said(key: str, argv: Sequence[str]) -> str:
    """The override as the user wrote it."""
    return next((a for a in argv if a.lstrip("+~").split("=")[0] == key), key)


def _chosen(group: str, argv: Sequence[str]) -> str:
    """The option of a group: the first that the command line names, else the default."""
    for argument in argv:
        name, _, value = argument.partition("=")
        first = value.split(",")[0]
        if name == group and first in options(group):
            return first
    for entry in OmegaConf.load(conf_dir() / "config.yaml").defaults:
        if not isinstance(entry, str) and group in entry:
            return str(entry[group])
    raise KeyError(group)
