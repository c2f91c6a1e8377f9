"""Hydra's and OmegaConf's errors in one line that names the override to change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from fnmatch import fnmatch
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kvbench.common.paths import conf_dir
from kvbench.common.suggest import did_you_mean
from kvbench.config.groups import defaults, options
from kvbench.config.loggers import unknown_setting
from kvbench.config.schema import GROUPS, NODES, Config
from kvbench.methods.dials import FIXED, PARTS


@contextmanager
def plain_mistakes(overrides: Sequence[str]) -> Iterator[None]:
    """Turn errors of Hydra and OmegaConf into a ValueError whose one line names the override to change."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError(one_line(error, overrides)) from None


def one_line(error: BaseException, argv: Sequence[str]) -> str:
    """Return the message of a configuration error, with the override on the command line that caused it."""
    text = str(error).strip()
    reference = re.search(r"Interpolation key '([^']+)' not (?:chosen|found)\s+full_key: (\S+)", text)
    if reference:
        return f"{_as_written(reference[2], argv)}: refers to ${{{reference[1]}}}, which is no setting"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return _unknown_key(unknown[1], argv)
    option = re.search(
        rf"Could not find '({'|'.join((*GROUPS, 'logger', 'experiment', 'hydra/launcher'))})/([^']+)'", text
    )
    if option:
        group, name = option.groups()
        return f"{group}={name}: no such {group}.{did_you_mean(name, options(group))}"
    merging = re.search(r"Error merging override (.+)", text)
    if merging and error.__cause__ is not None:
        return f"{merging[1].strip()}: {str(error.__cause__).splitlines()[0]}"
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _unknown_key(key: str, argv: Sequence[str]) -> str:
    """Return the message about an unknown key; it suggests a known one."""
    group, _, rest = key.partition(".")
    override = _as_written(key, argv)
    if group in GROUPS and rest:
        *path, last = rest.split(".")
        for name in _chosen(group, argv):
            node: Any = defaults(group, name)
            for part in path:
                node = node.get(part) or {}
            known = [str(k) for k in node if path or k not in ("_target_", *FIXED, *PARTS)]
            if last not in known:
                return f"{override}: {name} has no setting {last!r}.{did_you_mean(last, known)}"
    if group in NODES and rest:
        known = [f"{group}.{field.name}" for field in fields(NODES[group])]
        return f"{override}: no such setting.{did_you_mean(key, known)}"
    if group == "logger" and rest:
        return unknown_setting(override, key)
    if key.startswith("hydra.launcher."):
        return _unknown_of_launcher(override, key.removeprefix("hydra.launcher."), argv)
    return f"{override}: no such setting.{did_you_mean(key, Config.__dataclass_fields__)}"


def _unknown_of_launcher(override: str, setting: str, argv: Sequence[str]) -> str:
    """Return the message about a setting that the chosen launcher does not have."""
    name = next((a.partition("=")[2] for a in reversed(argv) if a.startswith("hydra/launcher=")), "fused")
    shipped = defaults("hydra/launcher", name) if name in options("hydra/launcher") else {}
    known = [str(key) for key in shipped if not str(key).startswith("_")]
    hint = did_you_mean(setting, known) if known else " (launcher=fused_slurm has settings)"
    return f"{override}: launcher={name} has no setting {setting!r}.{hint}"


def _as_written(key: str, argv: Sequence[str]) -> str:
    """Return the override as the user wrote it."""
    return next((a for a in argv if a.lstrip("+~").split("=")[0] == key), key)


def _chosen(group: str, argv: Sequence[str]) -> list[str]:
    """Return the options of a group that the command line names (several in a sweep), or the default."""
    for argument in argv:
        name, _, value = argument.partition("=")
        patterns = [p for p in re.split(r"[,()\s]+", value.removeprefix("glob")) if p]
        chosen = [o for o in options(group) if any(fnmatch(o, p) for p in patterns)]
        chosen += [p for p in patterns if "+" in p and group == "method"]  # they have been composed before
        if name == group and chosen:
            return chosen
    for entry in OmegaConf.load(conf_dir() / "config.yaml").defaults:
        if not isinstance(entry, str) and group in entry:
            return [str(entry[group])]
    raise KeyError(group)
