"""The check of the node `logger`: which loggers are chosen, and the types of their settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override

from kvbench.common.loggers import LOGGERS, MODES
from kvbench.common.suggest import did_you_mean
from kvbench.config.annotations import check_value, settings_of

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,63}")
_LONGEST_TAG = 64  # characters, of W&B


def check_loggers(node: Mapping[str, Any]) -> None:
    """Check the node `logger` of a configuration. Raises ValueError that names the override to change."""
    for name, settings in node.items():
        if name not in LOGGERS or not isinstance(settings, Mapping):
            raise ValueError(f"logger.{name}={settings}: no such logger.{did_you_mean(str(name), LOGGERS)}")
        kinds = settings_of(f"kvbench.common.loggers.{LOGGERS[name].__name__}")
        for key, value in settings.items():
            setting = f"logger.{name}.{key}"
            if key not in kinds:
                raise ValueError(f"{setting}: no such setting.{did_you_mean(str(key), kinds)}")
            check_value(setting, value, kinds[key])
            _check_text(setting, key, value)


def _check_text(setting: str, key: str, value: object) -> None:
    """Check what W&B and Trackio would refuse, or use for a path. Raises ValueError."""
    if key == "mode" and value not in MODES:
        raise ValueError(f"{setting}={value}: must be one of {', '.join(MODES)}")
    if key in ("project", "entity") and isinstance(value, str) and not _NAME.fullmatch(value):
        raise ValueError(f"{setting}={value}: use at most 64 letters, digits, spaces and _.-")
    for text in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
        if (
            key in ("tags", "group")
            and isinstance(text, str)
            and not (text.isprintable() and 0 < len(text) <= _LONGEST_TAG)
        ):
            raise ValueError(f"{setting}={text}: must have 1 to {_LONGEST_TAG} printable characters")


def check_not_swept(override: Override) -> None:
    """Refuse a list of values for a logger: the jobs of such a sweep would be the same runs. Raises ValueError."""
    key = override.key_or_group
    if key == "logger":
        together = ",".join(override.sweep_string_iterator())
        raise ValueError(f"{override.input_line}: a sweep has the same loggers for all runs; write logger=[{together}]")
    if key.startswith("logger."):
        raise ValueError(f"{override.input_line}: a sweep has the same loggers for all runs; give one value")


def unknown_setting(override: str, key: str) -> str:
    """Return the message about a setting below `logger` that Hydra does not know."""
    _, name, *path = [*key.split("."), ""]
    if name not in LOGGERS:
        return f"{override}: no such logger.{did_you_mean(name, LOGGERS)}"
    known = settings_of(f"kvbench.common.loggers.{LOGGERS[name].__name__}")
    if path and path[0] in known:
        return f"{override}: nothing is logged to {name}; add logger={name}, or logger=[{','.join(LOGGERS)}]"
    return f"{override}: logger.{name} has no such setting.{did_you_mean('.'.join(filter(None, path)), known)}"
