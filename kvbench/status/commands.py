"""The command line that computes a stored run, from its config.yaml."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kvbench.config import FIXED, GROUPS, PARTS, Config, defaults, options
from kvbench.config.schema import EngineConfig
from kvbench.store.plans import Plan
from kvbench.store.stored_config import read_config

_FIXED = ("_target_", *FIXED, *PARTS)  # follow from the option's name
_TRUST = "trust_remote_code"  # whether a model may bring code: never suggested, each user decides
_WORD = re.compile(r"[A-Za-z_./][\w./+@-]*")
_LITERALS = re.compile(r"(?i)null|true|false|nan|inf")
_ELSEWHERE = ".../"  # a path of the machine that recorded the run, see `kvbench.store.identity.without_places`

Node = Mapping[str, object]


def command_of(folder: Path, outputs: Path) -> str | None:
    """Return a command that computes the run in `folder`; None if its config.yaml does not tell.

    Of a suite, it computes the other parts, too. It never allows a model to run code of its own.
    """
    try:
        words = list(_words(read_config(folder)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OmegaConfBaseException):
        return None  # written by another version, or by hand
    if any(_ELSEWHERE in word for word in words):
        return None
    if outputs != Path.cwd() / "outputs":
        near = outputs.is_relative_to(Path.cwd())
        words.append(_to(outputs.relative_to(Path.cwd()) if near else outputs))
    return "python -m kvbench " + shlex.join(words)


def resuming(plan: Plan) -> str:
    """Return the command that resumes a plan where it lies now. It never lets a model run code of its own."""
    command = without_trust(plan.command)
    if plan.outputs is None:
        return command
    to = _to(plan.outputs)  # absolute: the command may be issued in another folder
    try:
        words = shlex.split(command)
    except ValueError:
        return f"{command} {shlex.quote(to)}"
    return shlex.join([*(word for word in words if word.lstrip("+").partition("=")[0] != "paths.outputs"), to])


def _to(outputs: Path) -> str:
    return f"paths.outputs={_value(str(outputs))}"


def without_trust(command: str) -> str:
    """Return a command without the words that let a model run code of its own."""
    if _TRUST not in command:
        return command
    try:
        words = shlex.split(command)
    except ValueError:
        return command.replace(_TRUST, "...")
    return shlex.join(word for word in words if _TRUST not in word)


def _words(stored: Node) -> Iterator[str]:
    """Yield the overrides: the options, and what differs from their YAML."""
    nodes = {group: _node(stored, group) for group in GROUPS}
    shipped = {group: defaults(group, str(nodes[group]["name"])) for group in GROUPS}
    base = {key: value for key, value in stored.items() if key != "model"}
    composed = OmegaConf.to_container(OmegaConf.create(base | shipped | {"model": nodes["model"]}), resolve=True)
    assert isinstance(composed, dict)
    composed["model"] = OmegaConf.to_container(shipped["model"])
    if nodes["model"].get("kind") not in _kinds():  # renamed since: the preset has the kind of today
        nodes["model"] = {key: value for key, value in nodes["model"].items() if key != "kind"}
    for group in GROUPS:
        yield f"{group}={_value(str(nodes[group]['name']))}"
    yield f"budget={_value(stored['budget'])}"
    cache = _node(stored, "engine")["cache"]
    for key, value, default in (
        ("seed", stored.get("seed", Config.seed), Config.seed),
        ("kernel", stored.get("kernel", Config.kernel), Config.kernel),
        ("engine.cache", cache, EngineConfig.cache),
    ):
        if value != default:
            yield f"{key}={_value(value)}"
    for group in GROUPS:
        yield from _differences(group, nodes[group], composed[group], top=True)


def _node(stored: Node, key: str) -> Node:
    node = stored[key]
    if not isinstance(node, Mapping):
        raise TypeError(f"{key} is not a group")
    return node


def _differences(path: str, stored: Node, shipped: Node, top: bool = False) -> Iterator[str]:
    for key, value in stored.items():
        if (top and key in _FIXED) or key == _TRUST:
            continue
        known = shipped.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            yield from _differences(f"{path}.{key}", value, known)
        elif key not in shipped:
            yield f"+{path}.{key}={_value(value)}"
        elif value != known:
            yield f"{path}.{key}={_value(value)}"


def _value(value: object) -> str:
    """Return a value as Hydra's command line reads it back."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_value, value)) + "]"
    if not isinstance(value, str):
        return repr(value)
    if _WORD.fullmatch(value) and not _LITERALS.fullmatch(value):
        return value
    # inside quotes, a backslash counts as one only before a quote
    return '"' + re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + ("\\" if m[2] else "") + m[2], value) + '"'


def _kinds() -> set[str]:
    """Return the kinds of models that conf/model has."""
    return {str(defaults("model", name).get("kind")) for name in options("model")}
