"""One function per type of setting in a `model` node. An error is one line that names the override to change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kvbench.common.kinds import is_integer, is_number

LARGEST_SEED = 2**63 - 1


def integer(setting: str, value: object, least: int = 1, most: int | None = None) -> int:
    """Return `value` if it is an integer from `least` to `most`. Raises ValueError."""
    if not is_integer(value) or value < least:
        raise ValueError(f"{setting}={value}: must be an integer, at least {least}")
    if most is not None and value > most:
        raise ValueError(f"{setting}={value}: must be at most {most}")
    return value


def number(setting: str, value: object) -> float:
    """Return `value` if it is a finite number above 0. Raises ValueError."""
    if not is_number(value) or not math.isfinite(float(value)) or value <= 0:
        raise ValueError(f"{setting}={value}: must be a finite number above 0")
    return value


def text(setting: str, value: object) -> str | None:
    """Return `value` if it is text or None. Raises ValueError."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{setting}={value}: must be text, or null")
    return value


def flag(setting: str, value: object) -> bool:
    """Return `value` if it is true or false. Raises ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"{setting}={value}: must be true or false")
    return value


def choice(setting: str, value: object, options: Sequence[str]) -> str:
    """Return `value` if it is one of `options`. Raises ValueError."""
    if value not in options:
        raise ValueError(f"{setting}={value}: choose one of {', '.join(options)}")
    return str(value)


def mapping(setting: str, value: object) -> dict[str, object]:
    """Return `value` as a dictionary if it is one with text keys; None is an empty one. Raises ValueError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{setting}={value}: must be a dictionary, such as {{key: value}}")
    return {str(key): item for key, item in value.items()}
