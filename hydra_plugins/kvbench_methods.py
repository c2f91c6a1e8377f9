"""Shims that Hydra's plugin scan finds, as in `kvbench_launcher`: the methods as options of Hydra's group."""

from kvbench.config import method_source


class MethodSource(method_source.MethodSource):
    """The group `method`, composed."""


class MethodSearchPath(method_source.MethodSearchPath):
    """The place of `MethodSource` among Hydra's sources."""
