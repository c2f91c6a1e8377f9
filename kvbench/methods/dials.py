"""The dials of a method: names and types as its YAML has them, checked without torch.

A method's YAML has its dials at the top, as plain scalars; its parts (`score`, `layers`, ...) interpolate them. What a
dial means, and which values are possible, is up to the parts that it feeds: they check it when they are built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from omegaconf import OmegaConf

from kvbench.common.kinds import is_integer
from kvbench.common.suggest import did_you_mean
from kvbench.methods.files import names_file

PARTS = ("score", "layers", "heads", "select", "probe", "merge", "feed", "store", "decode", "look")
EVICTING = ("score", "layers", "heads", "select")
"""The parts that choose which tokens of a prompt stay."""
FIXED = ("name", "about", "test", "gives", "takes")
"""Entries of a method's YAML that are neither dials nor parts: `about` says where the method comes from, and `test` is
for the tests that find methods by glob. `gives` has fields for the store of another method that names them in `takes`;
in a combination of the two this store is used, with these fields. A run has no more than its parts in its identity."""
ABOUT = ("paper", "code", "equal", "acts")
"""Entries of `about`: the paper, the reference code with its commit, and what is equal to what it computes. `acts` is
prefill for a store that leaves generated tokens as they are."""
MOST = 2**31 - 1  # positions and lengths are counted in 32 bits
_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a word"}


def split_dials(config: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the dials of a method's config: its top-level entries without those in `FIXED` and parts."""
    dials = {str(key): config[key] for key in config if key not in (*FIXED, *PARTS)}
    return {key: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for key, v in dials.items()}


def check_keys(method: str, overrides: Mapping[str, Any], dials: Mapping[str, Any]) -> None:
    """Raise ValueError for an override that is no dial of this method."""
    for key in overrides:
        if key not in dials:
            raise ValueError(f"method.{key}={overrides[key]}: {method} has no dial {key!r}.{did_you_mean(key, dials)}")


def check_types(dials: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check the type of every dial against its default in the YAML. A default of null takes anything but huge numbers.

    Raises:
        ValueError: one line naming the override to change.
    """
    for key, value in dials.items():
        default = defaults[key]
        if names_file(default):  # whatever is no path is refused when the file is read
            continue
        if default is not None and not _is_of_type(value, type(default)):
            kind = _KINDS.get(type(default), "a list" if _is_list(default) else "a mapping")
            raise ValueError(f"method.{key}={value}: must be {kind} (default {default})")
        if is_integer(value) and abs(value) > MOST:
            raise ValueError(f"method.{key}={value}: must be between {-MOST} and {MOST}")


def _is_of_type(value: Any, wanted: type) -> bool:
    if isinstance(value, bool) or wanted is bool:
        return isinstance(value, bool) and wanted is bool
    if wanted is int or wanted is float:
        numbers = int if wanted is int else (int, float)
        return isinstance(value, numbers) and math.isfinite(value)
    return isinstance(value, wanted) or (_is_list(value) and issubclass(wanted, Sequence) and wanted is not str)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def as_plain_number(value: Any) -> Any:
    """Return numbers of other libraries, such as numpy's, as Python's int or float; all else as it is."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)
