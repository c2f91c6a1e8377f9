"""Kinds of values in a configuration: `true` is an int for Python, and not for a user; words that a setting takes."""

from __future__ import annotations

from typing import TypeGuard

CACHES = ("ragged", "masked")  # of engine.cache
SWITCHES = ("auto", "true", "false")  # of engine.graph and engine.fused


def is_integer(value: object) -> TypeGuard[int]:
    """Return True for an int that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Return True for an int or a float that is not a bool; nan and infinity are numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)
