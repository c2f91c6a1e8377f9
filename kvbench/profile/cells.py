"""Cells: a cell is one method under one budget at one context length, batch size and kernel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kvbench.engine.variant import Variant
from kvbench.methods.budgets import as_stored
from kvbench.methods.files import DialFile
from kvbench.models import ModelSpec
from kvbench.profile.settings import ProfileSettings
from kvbench.store.identity import identity_hash


@dataclass(frozen=True)
class Cell:
    """A variant at a point of the sweep. `kernel` is a name, or "auto" as long as no kernel is chosen."""

    variant: Variant
    context: int
    batch: int
    kernel: str

    @property
    def is_full_cache(self) -> bool:
        """True for a method without parts, which keeps every token as it is; ratios refer to it."""
        method = self.variant.method
        return method.eviction is None and method.store is None and method.decode is None

    @property
    def point(self) -> dict[str, Any]:
        """The values that tell this cell from others in its folder, JSON-able; they are in its record."""
        return {
            "method": self.variant.method.name,
            "dials": {k: v.digest if isinstance(v, DialFile) else v for k, v in self.variant.method.dials.items()},
            "budget": as_stored(self.variant.budget),
            "context": self.context,
            "batch": self.batch,
            "kernel": self.kernel,
        }

    @cached_property
    def id(self) -> str:
        """A readable name that ends with a hash of the point."""
        budget = "full" if self.variant.budget is None else self.variant.budget
        where = f"{self.context}x{self.batch}-{self.kernel}"
        return f"{self.variant.method.name}-b{budget}-{where}-{identity_hash(self.point)[:8]}"

    @property
    def title(self) -> str:
        """The cell in a few words, for messages."""
        return f"{self.variant}, {self.batch} x {self.context} tokens, {self.kernel}"


@dataclass(frozen=True)
class Group:
    """Cells that share everything else: one model, one folder of results.

    Attributes:
        cfg: the composed configuration as plain data. Its method and budget are those of the first cell.
        model: its checked model.
        settings: how each cell is measured.
        cells: sorted by context, batch and kernel, the full cache first.
    """

    cfg: Mapping[str, Any]
    model: ModelSpec
    settings: ProfileSettings
    cells: tuple[Cell, ...]


def group_key(cfg: Mapping[str, Any]) -> str:
    """Return a text that is equal for configurations whose cells belong to one group."""
    shared = {key: value for key, value in cfg.items() if key not in ("method", "budget", "kernel")}
    return json.dumps(shared, sort_keys=True, default=str)
