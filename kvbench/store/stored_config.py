"""The config.yaml of a run folder, which may come from anywhere: read as plain data, within limits.

Nothing in it is executed. Tags, anchors and deep nesting, which the store never writes, are refused before the text is
turned into objects: a few lines with anchors can stand for gigabytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kvbench.store.files import read_bytes

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there
_DEPTH, _SIZE = 64, 2**22  # levels of nesting, bytes
_REMEDY = "delete it, the run goes on without it"


def read_config(folder: Path) -> dict[str, object]:
    """Return the configuration of a run; {} when there is none. Raises ValueError when it is damaged."""
    file = folder / "config.yaml"
    try:
        data = read_bytes(file)
    except FileNotFoundError:
        return {}
    if len(data) > _SIZE:
        raise ValueError(f"{file}: larger than {_SIZE >> 20} MiB; {_REMEDY}")
    try:
        fault = _fault(data)
        config = None if fault else yaml.load(data, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ValueError(f"{file}: not valid YAML; {_REMEDY}") from None
    if fault:
        raise ValueError(f"{file}: {fault}; {_REMEDY}")
    if not isinstance(config or {}, dict):
        raise ValueError(f"{file}: not a configuration; {_REMEDY}")
    return config or {}


def _fault(data: bytes) -> str | None:
    depth = 0
    for event in yaml.parse(data, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            return "uses YAML anchors"
        if getattr(event, "tag", None) is not None:
            return "uses YAML tags"
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEPTH:
                return "is nested too deeply"
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return None
