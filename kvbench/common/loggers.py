"""The settings of the loggers, as conf/logger/*.yaml hold them. None of them is part of a run's identity.

There is no setting for a key or a server: an experiment file from elsewhere must not send a key anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

MODES = ("auto", "online", "offline")


@dataclass(frozen=True)
class WandbSettings:
    """The node `logger.wandb`; what each setting means is in conf/logger/wandb.yaml."""

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: str = "auto"
    report: bool = True


@dataclass(frozen=True)
class TrackioSettings:
    """The node `logger.trackio`; what each setting means is in conf/logger/trackio.yaml."""

    project: str | None = None
    group: str | None = None


LOGGERS = {"wandb": WandbSettings, "trackio": TrackioSettings}
Settings = WandbSettings | TrackioSettings


def settings_of_loggers(node: Mapping[str, Any]) -> dict[str, Settings]:
    """Return the settings of the chosen loggers by name. `node` is the checked node `logger`."""
    return {name: _settings(LOGGERS[name], node[name]) for name in LOGGERS if name in node}


def _settings(kind: type[Any], node: Mapping[str, Any]) -> Settings:
    known = {entry.name for entry in fields(kind)}
    settings: Settings = kind(**{key: value for key, value in node.items() if key in known})
    return settings
