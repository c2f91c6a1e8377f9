"""The `profile.*` settings: conf/profile.yaml with the values of the command line, checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from kvbench.common.paths import conf_dir
from kvbench.common.suggest import did_you_mean
from kvbench.config.combinations import combinations

AXES = ("context", "batch")
_RANGE = {  # smallest and largest value
    "context": (1, 2**24),
    "batch": (1, 2**16),
    "new_tokens": (4, 2**20),
    "warmup": (0, 1000),
    "repeats": (1, 1000),
}


@dataclass(frozen=True)
class ProfileSettings:
    """The points to measure, and how often each is measured.

    Attributes:
        context: prompt lengths in tokens.
        batch: numbers of rows that decode together.
        new_tokens: tokens of every answer.
        warmup: passes before the first that counts.
        repeats: passes that count.
    """

    context: tuple[int, ...]
    batch: tuple[int, ...]
    new_tokens: int
    warmup: int
    repeats: int

    def per_cell(self) -> dict[str, int]:
        """Return the settings that every cell has, without the lists of context lengths and batch sizes."""
        return {"new_tokens": self.new_tokens, "warmup": self.warmup, "repeats": self.repeats}


def is_profile_setting(override: Override) -> bool:
    """Return True if an override belongs to the `profile` node."""
    return override.key_or_group.split(".")[0] == "profile"


def profile_settings(overrides: Sequence[Override]) -> ProfileSettings:
    """Return the shipped settings with these overrides.

    Raises:
        ValueError: one line naming the override to change.
    """
    shipped = OmegaConf.load(conf_dir() / "profile.yaml")
    settings: dict[str, list[int]] = {
        str(name): _checked(str(name), list(value) if name in AXES else [value], f"profile.{name!s}")
        for name, value in shipped.items()
    }
    for override in overrides:
        name, text = override.key_or_group.partition(".")[2], override.input_line
        if name not in settings:
            raise ValueError(f"{text}: no such setting.{did_you_mean(name, settings)}")
        if override.is_delete() or override.is_add():
            raise ValueError(f"{text}: settings of the profile are set, as in profile.{name}=VALUE")
        if name not in AXES and (override.is_sweep_override() or isinstance(override.value(), list)):
            raise ValueError(f"{text}: takes one value; lists are for profile.context and profile.batch")
        settings[name] = _checked(name, _values(override), str(text))
    context, batch, (new_tokens,), (warmup,), (repeats,) = (settings[name] for name in _RANGE)
    return ProfileSettings(tuple(context), tuple(batch), new_tokens, warmup, repeats)


def _values(override: Override) -> list[object]:
    """Return the values of an override, which may be a list, `1,2` or a range. Raises ValueError for too many."""
    if override.is_sweep_override():
        texts = [line.partition("=")[2] for (line,) in combinations([override])]
        return [int(text) if re.fullmatch(r"-?\d{1,18}", text) else text for text in texts]
    value = override.value()
    return list(value) if isinstance(value, list) else [value]


def _checked(name: str, values: Sequence[object], text: str) -> list[int]:
    """Return the values if they are integers in the allowed range. Raises ValueError."""
    low, high = _RANGE[name]
    integers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    if not values or len(integers) < len(values) or not all(low <= value <= high for value in integers):
        kind = "integers" if name in AXES else "an integer"
        raise ValueError(f"{text}: must be {kind} from {low} to {high}")
    return integers
