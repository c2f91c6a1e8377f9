"""The configuration: its types, its checks, and the one-line messages about a mistake in it."""

from kvbench.config.checks import (
    CACHES,
    GROUPS,
    HOST_KERNELS,
    KERNELS,
    Config,
    check,
    defaults,
    has_budget,
    options,
    register,
    shard_of,
)

__all__ = [
    "CACHES",
    "GROUPS",
    "HOST_KERNELS",
    "KERNELS",
    "Config",
    "check",
    "defaults",
    "has_budget",
    "options",
    "register",
    "shard_of",
]
