"""The configuration: its types, its checks, and the one-line messages about a mistake in it."""

from __future__ import annotations

from kvbench.config.checks import check, check_hints, has_budget, shard_of
from kvbench.config.groups import defaults, method, options
from kvbench.config.schema import GROUPS, HOST_KERNELS, KERNELS, Config, register
from kvbench.methods.dials import FIXED, PARTS

__all__ = [
    "FIXED",
    "GROUPS",
    "HOST_KERNELS",
    "KERNELS",
    "PARTS",
    "Config",
    "check",
    "check_hints",
    "defaults",
    "has_budget",
    "method",
    "options",
    "register",
    "shard_of",
]
