"""Type checks of JSON values by annotations: files and mypy go by the same types.

Supported: str, int, float, bool, None, object (any JSON value), list, dict with str keys, Literal, unions, TypedDict
with NotRequired, and Annotated with `Range` or `Pattern`. A float may be written as an int; it must be finite.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

_DEPTH = 32  # levels of nesting in a value of type object
_SHOWN = 60  # characters of a wrong value in a message


@dataclass(frozen=True)
class Range:
    """The smallest and largest number allowed."""

    low: float
    high: float


@dataclass(frozen=True)
class Pattern:
    """The pattern that a whole text must match; `fault` is the message."""

    regex: str
    fault: str


class _Fault(Exception):
    """A value of the wrong type; `path` leads to it, the innermost key first."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.path: list[str] = []


Check = Callable[[object], None]  # raises _Fault


def check(value: object, kind: Any) -> None:
    """Check a JSON value against a type. Raises ValueError that names the key and its value."""
    try:
        _check(kind)(value)
    except _Fault as fault:
        where = ".".join(reversed(fault.path))
        raise ValueError(f"{where}: {fault}" if where else str(fault)) from None


def show(value: object) -> str:
    """Return a value as one short line of JSON for a message."""
    try:
        text = json.dumps(value, ensure_ascii=True, default=repr)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


@cache
def _check(kind: Any) -> Check:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _both(_check(arguments[0]), *(_rule(rule) for rule in arguments[1:]))
    if origin is NotRequired:
        return _check(arguments[0])
    if origin is Literal:
        return _literal(arguments)
    if origin in (Union, UnionType):
        return _union(arguments)
    if origin is list:
        return _list(_check(arguments[0]))
    if origin is dict:
        return _mapping(_check(arguments[1]))
    if is_typeddict(kind):
        return _fields(kind)
    return _PLAIN[kind]


def _plain(words: str, *types: type) -> Check:
    def run(value: object) -> None:
        if type(value) not in types:
            raise _Fault(f"{show(value)} is not {words}")

    return run


def _finite(value: object) -> None:
    if type(value) not in (int, float) or not math.isfinite(_as_float(value)):
        raise _Fault(f"{show(value)} is not a finite number")


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _anything(value: object) -> None:
    _any_json(value, _DEPTH)


def _any_json(value: object, depth: int) -> None:
    if not depth:
        raise _Fault(f"nested deeper than {_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            _at(key, lambda entry: _any_json(entry, depth - 1), item)
    elif isinstance(value, list):
        for item in value:
            _any_json(item, depth - 1)
    elif type(value) in (int, float):
        _finite(value)


def _at(key: str, item: Check, value: object) -> None:
    """Check the value under `key`; a fault in it names the key."""
    try:
        item(value)
    except _Fault as fault:
        fault.path.append(key[:_SHOWN])
        raise


_PLAIN: dict[Any, Check] = {
    str: _plain("a text", str),
    int: _plain("an integer", int),
    bool: _plain("true or false", bool),
    NoneType: _plain("null", NoneType),
    float: _finite,
    object: _anything,
}


def _both(*checks: Check) -> Check:
    def run(value: object) -> None:
        for part in checks:
            part(value)

    return run


def _rule(rule: Range | Pattern) -> Check:
    if isinstance(rule, Range):
        low, high = rule.low, rule.high

        def in_range(value: Any) -> None:
            if not low <= value <= high:
                raise _Fault(f"{show(value)} is not between {low:g} and {high:g}")

        return in_range
    regex, fault = re.compile(rule.regex, re.DOTALL), rule.fault

    def matches(value: Any) -> None:
        if not regex.fullmatch(value):
            raise _Fault(f"{show(value)}: {fault}")

    return matches


def _literal(values: tuple[object, ...]) -> Check:
    def run(value: object) -> None:
        if not isinstance(value, str) or value not in values:
            raise _Fault(f"{show(value)} is not one of {', '.join(map(str, values))}")

    return run


def _union(kinds: tuple[Any, ...]) -> Check:
    """Return the check of a union: of a text that of its kind of text, of other values that of its first other kind."""
    checks = [(_is_text(kind), _check(kind)) for kind in kinds if kind is not NoneType]

    def run(value: object) -> None:
        if value is not None or NoneType not in kinds:
            suited = [check for is_text, check in checks if is_text == isinstance(value, str)]
            next(iter(suited), checks[0][1])(value)

    return run


def _is_text(kind: Any) -> bool:
    """Return True if a type holds texts."""
    own = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return own is str or get_origin(own) is Literal


def _list(item: Check) -> Check:
    def run(value: object) -> None:
        if not isinstance(value, list):
            raise _Fault(f"{show(value)} is not a list")
        for index, entry in enumerate(value):
            _at(str(index), item, entry)

    return run


def _mapping(item: Check) -> Check:
    def run(value: object) -> None:
        if not isinstance(value, dict):
            raise _Fault(f"{show(value)} is not an object")
        for key, entry in value.items():
            _at(key, item, entry)

    return run


def _fields(kind: Any) -> Check:
    hints = get_type_hints(kind, include_extras=True)
    total = kind.__total__
    fields = [(key, total and get_origin(hint) is not NotRequired, _check(hint)) for key, hint in hints.items()]

    def run(value: object) -> None:
        if not isinstance(value, dict):
            raise _Fault(f"{show(value)} is not an object")
        for key, required, item in fields:
            if key in value:
                _at(key, item, value[key])
            elif required:
                raise _Fault(f"{key} is missing")

    return run
