"""The check of what a configuration tells Hydra itself, before Hydra acts on it.

Hydra calls what its own node names: callbacks, launchers, sweepers, handlers of log messages. An experiment file from
elsewhere must not run code by that. So the node is composed without acting on it and compared with the one that
kvbench ships. Only the settings in `_FREE` and those of a launcher may differ.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kvbench.common.kinds import is_integer
from kvbench.config.groups import options, shipped
from kvbench.config.interpolations import check_interpolations

_LOGGING = ("kvbench", "default", "disabled", "none", "stdout")  # ours and Hydra's own
_GROUPS = {
    "launcher": ("fused", "fused_slurm", "basic"),
    "job_logging": _LOGGING,
    "hydra_logging": _LOGGING,
    "sweeper": ("fused",),
}
_FREE = ("mode", "verbose", "run.dir", "sweep.dir", "sweeper.params", "sweeper.max_batch_size")
_BY_HYDRA = (  # Hydra writes these after it has composed; `check_recorded` checks the overrides
    *("overrides", "runtime.choices", "runtime.config_sources", "runtime.cwd", "runtime.version"),
    *("job.override_dirname", "job.config_name"),
)
_TYPED = ("run.dir", "sweep.dir", "launcher.setup", "launcher.extra", "launcher.folder")

_CODE = re.compile(r"_\w+_")  # keys such as _target_, by which Hydra calls what a node names
_CHOICE = re.compile(r"override\s+/?(hydra/\w+)")

_SHIPPED: dict[tuple[tuple[str, str], ...], list[tuple[str, Any]]] = {}


def check_override(override: Override) -> None:
    """Refuse an override of Hydra's node that sets nothing kvbench knows; Hydra reads some even before it composes.

    Raises:
        ValueError: one line naming the override.
    """
    key = override.key_or_group.replace("/", ".")
    if key != "hydra" and not key.startswith("hydra."):
        return
    path = key.removeprefix("hydra").removeprefix(".")
    known = path in _GROUPS or _is_below(path, (*_FREE, "launcher"))
    if not known or path.endswith("_") or override.package is not None:
        raise ValueError(f"{override.input_line}: kvbench does not use this setting of Hydra; leave it out")


def check_hydra(composed: DictConfig, loader: ConfigLoader, typed: Collection[str] = ()) -> None:
    """Check the `hydra` node of a composed configuration.

    Args:
        typed: keys that the command line sets. A folder or a shell line may be typed; a file may not bring it along.

    Raises:
        ValueError: one line naming the setting that must stay as it is shipped.
    """
    node = composed.hydra
    choices = {group: node.runtime.choices.get(f"hydra/{group}") for group in _GROUPS}
    for group, option in choices.items():
        if option not in _GROUPS[group]:
            raise ValueError(f"hydra/{group}={option}: choose one of {', '.join(_GROUPS[group])}")
    _check_choices(node.runtime.choices)
    reference = _as_shipped(loader, tuple(choices.items()))
    # to choose a launcher is not to type the shell lines that a file gives it
    is_typed = {key.removeprefix("hydra.") for key in typed if "/" not in key and key != "hydra.launcher"}
    given, ours = dict(_leaves(_plain(node))), dict(reference)
    for path in sorted(given.keys() | ours.keys()):
        if given.get(path) == ours.get(path) or _is_below(path, _BY_HYDRA):
            continue
        free = _is_below(path, _FREE) or (path.startswith("launcher.") and not path.endswith("_"))
        if not free:
            raise ValueError(
                f"hydra.{path}={given.get(path)}: kvbench does not use this setting of Hydra; leave it out"
            )
        if _is_below(path, _TYPED) and not any(_is_below(path, (key,)) for key in is_typed):
            raise ValueError(
                f"hydra.{path}={given.get(path)}: not from an experiment file; type it on the command line"
            )
    _check_launcher(_plain(node.launcher), str(choices["launcher"]))
    for part in ("launcher", "sweeper"):  # Hydra calls what these two name at any depth, lists included
        _check_plain(_plain(node[part]), f"hydra.{part}", top=True)
    if not _is_level(_plain(node).get("verbose")):
        raise ValueError(
            f"hydra.verbose={node.verbose}: must be true, false, or the name of a logger, or a list of them"
        )
    batch = node.sweeper.max_batch_size
    if batch is not None and (not is_integer(batch) or batch < 1):
        raise ValueError(f"hydra.sweeper.max_batch_size={batch}: must be an integer of at least 1, or null")
    params = _plain(node.sweeper).get("params") or {}
    for key in params:
        if re.match(r"[~+]*hydra\b", key):
            raise ValueError(f"hydra.sweeper.params.{key}={params[key]}: Hydra's own settings cannot be swept")
    check_interpolations(params, "hydra.sweeper.params")


def check_recorded(composed: DictConfig, overrides: Collection[str]) -> None:
    """Check that the overrides recorded in the `hydra` node are those of the command: each job composes them again.

    Raises:
        ValueError: a file adds some.
    """
    recorded = _plain(composed.hydra.overrides)
    lines = [*recorded["hydra"], *recorded["task"]]
    if sorted(lines) != sorted(overrides):
        added = next(line for line in (*lines, *overrides) if lines.count(line) != list(overrides).count(line))
        raise ValueError(f"hydra.overrides={added}: kvbench does not use this setting of Hydra; leave it out")


def _check_choices(choices: Mapping[str, Any]) -> None:
    """Refuse a file that chooses an option of Hydra's groups: Hydra ignores it, the first choice is conf/config.yaml's.

    Raises:
        ValueError: one line naming the file and what to type instead.
    """
    for group, option in choices.items():
        if group.startswith("hydra/") or not isinstance(option, str) or option not in options(group):
            continue
        for entry in shipped(group, option).get("defaults") or []:
            chosen = [
                match for key in (entry if isinstance(entry, Mapping) else ()) if (match := _CHOICE.match(str(key)))
            ]
            if chosen:
                value = next(iter(entry.values()))
                raise ValueError(
                    f"{group}={option}: its file cannot choose {chosen[0][1]}; type {chosen[0][1]}={value} on the "
                    "command line"
                )


def _check_launcher(node: Mapping[str, Any], option: str) -> None:
    """Refuse a setting that the chosen launcher does not have; a file may bring it along for another launcher."""
    known = shipped("hydra/launcher", option) if option in options("hydra/launcher") else ("_target_",)
    for key, value in node.items():
        if key not in known:
            raise ValueError(
                f"hydra.launcher.{key}={value}: launcher={option} has no such setting; leave it out, or type "
                "launcher=NAME to choose another launcher"
            )


def _check_plain(node: object, path: str, top: bool = False) -> None:
    """Refuse a key below `node` by which Hydra would call something."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if _CODE.fullmatch(str(key)) and not top:
                raise ValueError(f"{path}.{key}={value}: kvbench does not use this setting of Hydra; leave it out")
            _check_plain(value, f"{path}.{key}")
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            _check_plain(value, path)


def _is_level(value: object) -> bool:
    """Return True if Hydra can read a value of `hydra.verbose`."""
    names = value if isinstance(value, list) else [value]
    return isinstance(value, bool) or all(isinstance(name, str) for name in names)


def _as_shipped(loader: ConfigLoader, choices: tuple[tuple[str, str], ...]) -> list[tuple[str, Any]]:
    """Return the values of the `hydra` node without any override but the chosen groups; composed once per process."""
    if choices not in _SHIPPED:
        overrides = [f"hydra/{group}={option}" for group, option in choices]
        composed = loader.load_configuration("config", overrides, RunMode.MULTIRUN)
        _SHIPPED[choices] = list(_leaves(_plain(composed.hydra)))
    return _SHIPPED[choices]


def _is_below(path: str, nodes: Collection[str]) -> bool:
    return any(path == node or path.startswith(f"{node}.") for node in nodes)


def _plain(node: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(node, resolve=False, enum_to_str=True)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a nested dictionary with its dotted path; an empty dictionary counts as no value."""
    for key, value in node.items():
        below = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            yield from _leaves(value, below)
        else:
            yield below, value
