"""The `profile.*` settings: conf/profile.yaml with the values of the command line, checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from kvbench.common.kinds import is_integer
from kvbench.common.paths import conf_dir
from kvbench.common.suggest import did_you_mean
from kvbench.config.combinations import combinations

AXES = ("context", "batch", "pool")
_RANGE = {  # smallest and largest value
    "context": (1, 2**24),
    "batch": (1, 2**16),
    "new_tokens": (4, 2**20),
    "warmup": (0, 1000),
    "repeats": (1, 1000),
    "max_rows": (1, 4096),
    "prompts": (1, 256),
}
_LARGEST_POOL = 2**40  # tokens
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(k|M|MB|GB|MiB|GiB)")
_UNITS = {"k": 2**10, "M": 2**20, "MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
_OF_POOL = ("max_rows", "prompts")


@dataclass(frozen=True)
class ProfileSettings:
    """The points to measure, and how often each is measured.

    Attributes:
        context: prompt lengths in tokens.
        batch: numbers of rows that decode together.
        new_tokens: tokens of every answer.
        warmup: passes before the first that counts.
        repeats: passes that count.
        pool: sizes of the pool of keys and values, in tokens, or in bytes as a text such as "4GiB"; empty if `batch`
            says how many rows decode together.
        max_rows: most rows of a pool.
        prompts: different prompts of a pool's rows; the other rows are copies.
    """

    context: tuple[int, ...]
    batch: tuple[int, ...]
    new_tokens: int
    warmup: int
    repeats: int
    pool: tuple[int | str, ...]
    max_rows: int
    prompts: int

    def per_cell(self) -> dict[str, int]:
        """Return the settings that every cell has, without the lists of context lengths, batch and pool sizes."""
        common = {"new_tokens": self.new_tokens, "warmup": self.warmup, "repeats": self.repeats}
        return common | ({"max_rows": self.max_rows, "prompts": self.prompts} if self.pool else {})

    def shown(self) -> dict[str, Any]:
        """Return the settings that are used, for `--cfg`."""
        lists = {"pool": list(self.pool)} if self.pool else {"batch": sorted(set(self.batch))}
        return {"context": sorted(set(self.context)), **lists, **self.per_cell()}


def is_profile_setting(override: Override) -> bool:
    """Return True if an override belongs to the `profile` node."""
    return override.key_or_group.split(".")[0] == "profile"


def profile_settings(overrides: Sequence[Override]) -> ProfileSettings:
    """Return the shipped settings with these overrides.

    Raises:
        ValueError: one line naming the override to change.
    """
    shipped = OmegaConf.load(conf_dir() / "profile.yaml")
    settings: dict[str, list[Any]] = {
        str(name): _checked(str(name), list(value) if name in AXES else [value], f"profile.{name!s}")
        for name, value in shipped.items()
    }
    given = {}
    for override in overrides:
        name, text = override.key_or_group.partition(".")[2], override.input_line
        if name not in settings:
            raise ValueError(f"{text}: no such setting.{did_you_mean(name, settings)}")
        if override.is_delete() or override.is_add():
            raise ValueError(f"{text}: settings of the profile are set, as in profile.{name}=VALUE")
        if name not in AXES and (override.is_sweep_override() or isinstance(override.value(), list)):
            raise ValueError(f"{text}: takes one value; lists are for {', '.join(f'profile.{axis}' for axis in AXES)}")
        settings[name], given[name] = _checked(name, _values(override), str(text)), text
    return _consistent({name: tuple(of) if name in AXES else of[0] for name, of in settings.items()}, given)


def _consistent(settings: dict[str, Any], given: dict[str, Any]) -> ProfileSettings:
    """Return the settings. Raises ValueError for one that would be ignored."""
    if settings["pool"] and "batch" in given:
        raise ValueError(f"{given['batch']}: profile.pool decides how many rows decode together; leave out one of them")
    for name in _OF_POOL:
        if name in given and not settings["pool"]:
            raise ValueError(f"{given[name]}: it is for profile.pool=TOKENS, which is not set; leave it out")
    return ProfileSettings(**settings)


def _values(override: Override) -> list[object]:
    """Return the values of an override, which may be a list, `1,2` or a range. Raises ValueError for too many."""
    if override.is_sweep_override():
        texts = [line.partition("=")[2] for (line,) in combinations([override])]
        return [int(text) if re.fullmatch(r"-?\d{1,18}", text) else text for text in texts]
    value = override.value()
    return list(value) if isinstance(value, list) else [value]


def _checked(name: str, values: Sequence[object], text: str) -> list[Any]:
    """Return the values if they are integers in the allowed range, or sizes of pools. Raises ValueError."""
    if name == "pool":
        return list(dict.fromkeys(_pool(value, text) for value in values))
    low, high = _RANGE[name]
    integers = [value for value in values if is_integer(value)]
    if not values or len(integers) < len(values) or not all(low <= value <= high for value in integers):
        kind = "integers" if name in AXES else "an integer"
        raise ValueError(f"{text}: must be {kind} from {low} to {high}")
    return integers


def _pool(value: object, text: str) -> int | str:
    """Return the size of a pool in tokens, or a size in bytes as it is written. Raises ValueError."""
    matches = _SIZE.fullmatch(str(value))
    if matches and matches[2] not in ("k", "M") and float(matches[1]) > 0:
        return str(value)
    tokens = value if isinstance(value, int) else int(float(matches[1]) * _UNITS[matches[2]]) if matches else 0
    if isinstance(value, bool) or not 1 <= tokens <= _LARGEST_POOL:
        raise ValueError(
            f"{text}: must be sizes of a pool: tokens such as 65536 or 64k, or bytes such as 4GiB or 500MB"
        )
    return tokens


def pool_tokens(pool: int | str, token_bytes: int) -> int:
    """Return the size of a pool in tokens.

    Args:
        token_bytes: bytes of a token's keys and values in all layers of a full cache.
    """
    if isinstance(pool, int):
        return pool
    matches = _SIZE.fullmatch(pool)
    assert matches is not None
    return int(float(matches[1]) * _UNITS[matches[2]]) // token_bytes
