"""What a user may turn on a method, and what is impossible: names, types and ranges, checked without torch.

A method's YAML has its dials at the top, as plain scalars; its parts (`score`, `layers`, ...) interpolate them.
The common dials mean the same in every method; a method may add its own, typed by the default in its YAML.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kvbench.common.suggest import did_you_mean

PARTS = ("score", "layers", "heads", "select", "store", "decode")
_CHOICES = {
    "pooling": ("avg", "max", "none"),
    "reduce": ("mean", "max", "sum"),
    "allocation": ("exact", "reference"),
}
_MINIMUM = {"window": 0, "sinks": 0, "kernel_size": 1, "beta": 1, "floor": 0}
_MAXIMUM = {"floor": 1}


def check_keys(method: str, overrides: Mapping[str, Any], dials: Mapping[str, Any]) -> None:
    """Raise ValueError for an override that is no dial of this method."""
    for key in overrides:
        if key not in dials:
            raise ValueError(f"method.{key}={overrides[key]}: {method} has no dial {key!r}.{did_you_mean(key, dials)}")


def check_dials(dials: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check types against the defaults of the YAML and ranges of the common dials.

    Raises:
        ValueError: one line naming the override to change.
    """
    for key, value in dials.items():
        _check_type(key, value, defaults[key])
        if key in _CHOICES and value not in _CHOICES[key]:
            raise ValueError(f"method.{key}={value}: must be one of {', '.join(_CHOICES[key])}")
        if key in _MINIMUM and value < _MINIMUM[key]:
            raise ValueError(f"method.{key}={value}: must be at least {_MINIMUM[key]}")
        if key in _MAXIMUM and value > _MAXIMUM[key]:
            raise ValueError(f"method.{key}={value}: must be at most {_MAXIMUM[key]}")
        if key == "kernel_size" and value % 2 == 0:
            raise ValueError(f"method.kernel_size={value}: must be odd, so that pooling keeps the length")
        if key == "window" and isinstance(value, float) and not 0 <= value < 1:
            raise ValueError(f"method.window={value}: a share of the budget must lie in [0, 1); tokens are an int")


def _check_type(key: str, value: Any, default: Any) -> None:
    wanted = type(default)
    ok = isinstance(value, wanted) and not (wanted is not bool and isinstance(value, bool))
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        ok = True
    if isinstance(value, float) and not math.isfinite(value):
        ok = False
    if not ok:
        kind = {int: "an integer", float: "a number", bool: "true or false", str: "a word"}.get(wanted, wanted.__name__)
        raise ValueError(f"method.{key}={value}: must be {kind} (default {default})")


def check_budget(budget: Any) -> int | float:
    """A budget is an int (tokens per KV head) or a float in (0, 1] (share of the compressed span).

    Raises:
        ValueError: one line naming `budget`.
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise ValueError(f"budget={budget}: give tokens per KV head as an integer, or a share in (0, 1] as a float")
    if isinstance(budget, int):
        if budget <= 0:
            raise ValueError(f"budget={budget}: tokens per KV head must be at least 1")
    elif not (math.isfinite(budget) and 0 < budget <= 1):
        raise ValueError(f"budget={budget}: a share must lie in (0, 1]; tokens are an integer such as budget=128")
    return budget


def protected_tokens(dials: Mapping[str, Any], tokens: int) -> int:
    """Tokens that are always kept: sinks plus window (`window` as a float is a share of the budget)."""
    return int(dials.get("sinks", 0)) + window_tokens(dials.get("window", 0), tokens)


def window_tokens(window: int | float, tokens: int) -> int:
    """The recent window in tokens; a float is a share of the budget, rounded down."""
    return int(window * tokens) if isinstance(window, float) else window


def check_room(method: str, dials: Mapping[str, Any], tokens: int, said: str) -> None:
    """The budget must exceed what is always kept, or nothing would be selected.

    Raises:
        ValueError: one line naming `budget` and the dials in the way.
    """
    protected = protected_tokens(dials, tokens)
    if tokens <= protected == 0:
        raise ValueError(f"budget={said}: {method} would keep no token at all; the budget must be larger")
    if tokens <= protected:
        names = [f"method.{k}={dials[k]}" for k in ("sinks", "window") if dials.get(k)]
        raise ValueError(
            f"budget={said}: {method} always keeps {protected} tokens ({', '.join(names)}); "
            f"the budget must be larger, or these smaller"
        )
