"""Methods with some of their parts exchanged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvbench.methods.method import Method


def with_parts(method: Method, **parts: Any) -> Method:
    """Return an evicting method with other parts in the place of its own, e.g. `select=...`."""
    assert method.eviction is not None
    return replace(method, eviction=replace(method.eviction, **parts))
