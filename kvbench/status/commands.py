"""The command line that makes a stored run, from its config.yaml."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kvbench.config import GROUPS, PARTS, defaults

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FIXED = ("name", "_target_", *PARTS)  # follow from the option's name
_WORD = re.compile(r"[A-Za-z_./][\w./+@-]*")
_LITERALS = re.compile(r"(?i)null|true|false|nan|inf")


def command_of(folder: Path, outputs: Path) -> str | None:
    """A command that makes the run in `folder`; None where its config.yaml does not tell.

    Of a suite, it makes the other parts, too.
    """
    try:
        stored = yaml.load((folder / "config.yaml").read_bytes(), Loader=_LOADER)
        words = list(_words(stored))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError, OmegaConfBaseException):
        return None  # made by another version, or by hand
    if outputs != Path.cwd() / "outputs":
        near = outputs.is_relative_to(Path.cwd())
        words.append(f"paths.outputs={_value(str(outputs.relative_to(Path.cwd()) if near else outputs))}")
    return "python -m kvbench " + shlex.join(words)


def _words(stored: Mapping[str, Any]) -> Iterator[str]:
    """The overrides: the options, and what differs from their YAML."""
    shipped = {group: defaults(group, stored[group]["name"]) for group in GROUPS}
    base = {key: value for key, value in stored.items() if key != "model"}
    made = OmegaConf.to_container(OmegaConf.create(base | shipped | {"model": stored["model"]}), resolve=True)
    assert isinstance(made, dict)
    made["model"] = OmegaConf.to_container(shipped["model"])
    for group in GROUPS:
        yield f"{group}={stored[group]['name']}"
    yield f"budget={_value(stored['budget'])}"
    if stored.get("seed"):
        yield f"seed={stored['seed']}"
    if stored["engine"]["cache"] != "ragged":
        yield f"engine.cache={stored['engine']['cache']}"
    for group in GROUPS:
        yield from _differences(group, stored[group], made[group], top=True)


def _differences(path: str, stored: Mapping[str, Any], shipped: Mapping[str, Any], top: bool = False) -> Iterator[str]:
    for key, value in stored.items():
        if top and key in _FIXED:
            continue
        known = shipped.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            yield from _differences(f"{path}.{key}", value, known)
        elif key not in shipped:
            yield f"+{path}.{key}={_value(value)}"
        elif value != known:
            yield f"{path}.{key}={_value(value)}"


def _value(value: Any) -> str:
    """A value as Hydra's command line reads it back."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_value, value)) + "]"
    if not isinstance(value, str):
        return repr(value)
    if _WORD.fullmatch(value) and not _LITERALS.fullmatch(value):
        return value
    # inside quotes, a backslash counts as one only before a quote
    return '"' + re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + ("\\" if m[2] else "") + m[2], value) + '"'
