"""The methods of conf/method/ by what they have, and methods with some of their parts exchanged."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import kvbench
from kvbench.config import options
from kvbench.methods.method import Method


@cache
def shipped() -> dict[str, Method]:
    """Return {name: method} of every YAML in conf/method/, so that a new one is in all tests without registration."""
    return {name: kvbench.load_method(name) for name in sorted(options("method"))}


def evicting() -> list[str]:
    """Return the names of the methods that drop tokens."""
    return [name for name, method in shipped().items() if method.evicts]


def with_dial(dial: str) -> list[str]:
    """Return the names of the methods that have a dial of this name."""
    return [name for name, method in shipped().items() if dial in method.dials]


def with_parts(method: Method, **parts: Any) -> Method:
    """Return an evicting method with other parts in the place of its own, e.g. `select=...`."""
    assert method.eviction is not None
    return replace(method, eviction=replace(method.eviction, **parts))
