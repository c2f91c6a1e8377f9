"""Values of a YAML node against the type annotations of the class that is created from it."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from types import NoneType, UnionType
from typing import Any

from kvbench.common.kinds import is_integer, is_number
from kvbench.common.text import one_line

_LARGEST = 2**53  # beyond it, neither JSON nor a float holds every integer
_WORDS = {bool: "true or false", int: "an integer", float: "a finite number", str: "text", NoneType: "null"}


@cache
def settings_of(target: str) -> Mapping[str, Any]:
    """Return the settings of a class, name → type. `target` is its dotted name; importing it must be cheap.

    Raises:
        ValueError: the class cannot be imported, or is no dataclass, so its settings are unknown.
    """
    kind = _imported(target)
    if not is_dataclass(kind):
        raise ValueError(f"{target}: must be a dataclass, whose fields are the settings")
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


def _imported(target: str) -> Any:
    """Return a class by its dotted name. Raises ValueError, in one line, for a file that cannot be imported."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except Exception as error:  # the file may be a user's own, and may raise anything
        reason = one_line(f"{type(error).__name__}: {error}")
        raise ValueError(f"benchmark._target_={target}: cannot be imported: {reason}") from error


def check_value(setting: str, value: object, kind: Any) -> None:
    """Raise ValueError unless `value` has the annotated type `kind`; a float may be written as an integer."""
    if not _fits(value, kind):
        if is_integer(value) and abs(value) > _LARGEST:
            raise ValueError(f"{setting}={value}: must be between {-_LARGEST} and {_LARGEST}")
        shown = repr(value) if value == "" else value
        raise ValueError(f"{setting}={shown}: must be {describe(kind)}")


def describe(kind: Any) -> str:
    """Return a type in words: "an integer, or null"."""
    if kind in _WORDS:
        return _WORDS[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, UnionType):
        return ", or ".join(describe(argument) for argument in sorted(arguments, key=lambda a: a is NoneType))
    if origin is not None and issubclass(origin, Mapping):
        return "a dictionary, such as {key: value}"
    if origin is not None and issubclass(origin, Sequence):
        words = {
            int: "integers, such as [1, 2]",
            float: "finite numbers, such as [0.5, 1]",
            str: "texts, such as [a, b]",
        }
        return f"a list of {words.get(arguments[0], 'values')}"
    return str(kind)


def _fits(value: object, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind is int:
        return is_integer(value) and abs(value) <= _LARGEST
    if kind is float:
        return is_number(value) and math.isfinite(value)
    if kind in (str, bool, NoneType):
        return isinstance(value, kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(key, arguments[0]) and _fits(item, arguments[1]) for key, item in value.items()
        )
    if origin is not None and issubclass(origin, Sequence):
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and all(_fits(item, arguments[0]) for item in value)
        )
    return isinstance(kind, type) and isinstance(value, kind)
