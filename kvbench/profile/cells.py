"""What is measured: a cell is one method under one budget at one context length, batch size and kernel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kvbench.engine.variant import Variant
from kvbench.models import ModelSpec
from kvbench.store.identity import identity_hash

REFERENCE = "fullkv"  # what ratios are to


@dataclass(frozen=True)
class Cell:
    """A variant at a point of the sweep. `kernel` is as asked for: "auto" is a choice of the program's."""

    variant: Variant
    context: int
    batch: int
    kernel: str

    @property
    def point(self) -> dict[str, Any]:
        """What tells this cell from others of its folder, JSON-able; stands in its record."""
        return {
            "method": self.variant.method.name,
            "dials": dict(self.variant.method.dials),
            "budget": self.variant.budget,
            "context": self.context,
            "batch": self.batch,
            "kernel": self.kernel,
        }

    @cached_property
    def id(self) -> str:
        """For the eye, and with a hash of the dials behind it."""
        budget = "full" if self.variant.budget is None else self.variant.budget
        where = f"{self.context}x{self.batch}-{self.kernel}"
        return f"{self.variant.method.name}-b{budget}-{where}-{identity_hash(self.point)[:8]}"

    @property
    def title(self) -> str:
        """In a few words, for the progress bar and messages."""
        return f"{self.variant}, {self.batch} x {self.context} tokens, {self.kernel}"


@dataclass(frozen=True)
class Profile:
    """The `profile` node without its axes."""

    new_tokens: int
    warmup: int
    repeats: int


@dataclass(frozen=True)
class Group:
    """Cells that share everything else: one model, one folder of results.

    Attributes:
        cfg: the composed configuration as plain data; its method and budget are those of the first cell.
        model: its checked model.
        profile: how each cell is measured.
        cells: by context, batch and kernel, the full cache first.
    """

    cfg: Mapping[str, Any]
    model: ModelSpec
    profile: Profile
    cells: tuple[Cell, ...]


def group_key(cfg: Mapping[str, Any]) -> str:
    """Equal for configurations whose cells belong into one group."""
    shared = {key: value for key, value in cfg.items() if key not in ("method", "budget", "kernel")}
    return json.dumps(shared, sort_keys=True, default=str)
