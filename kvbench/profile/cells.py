"""Cells: a cell is one method under one budget at one context length, batch size (or size of a pool) and kernel."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kvbench.engine.variant import PromptLike, Request, Variant
from kvbench.methods.budgets import as_stored
from kvbench.methods.files import DialFile
from kvbench.models import ModelSpec
from kvbench.profile.settings import ProfileSettings
from kvbench.store.identity import identity_hash


@dataclass(frozen=True)
class Cell:
    """A variant at a point of the sweep.

    Attributes:
        batch: rows that decode together; 0 as long as it is not known how many fit into a pool.
        kernel: a name, or "auto" as long as no kernel is chosen.
        pool: tokens of the pool that the rows must fit into, bytes as a text such as "4GiB" as long as the model's
            sizes are not known, or `crossover.MEMORY`; None where the batch is given.
    """

    variant: Variant
    context: int
    batch: int
    kernel: str
    pool: int | str | None = None

    @property
    def is_full_cache(self) -> bool:
        """True for a method without parts, which keeps every token as it is; ratios refer to it."""
        method = self.variant.method
        return method.eviction is None and method.store is None and method.decode is None

    @property
    def point(self) -> dict[str, Any]:
        """The values that tell this cell from others in its folder, JSON-able; they are in its record."""
        where = {"batch": self.batch} if self.pool is None else {"pool": self.pool}
        return {
            "method": self.variant.method.name,
            "dials": {k: v.digest if isinstance(v, DialFile) else v for k, v in self.variant.method.dials.items()},
            "budget": as_stored(self.variant.budget),
            "context": self.context,
            **where,
            "kernel": self.kernel,
        }

    @cached_property
    def id(self) -> str:
        """A readable name that ends with a hash of the point."""
        budget = "full" if self.variant.budget is None else self.variant.budget
        rows = f"x{self.batch}" if self.pool is None else f"-pool{self.pool}"
        where = f"{self.context}{rows}-{self.kernel}"
        return f"{self.variant.method.name}-b{budget}-{where}-{identity_hash(self.point)[:8]}"

    @property
    def title(self) -> str:
        """The cell in a few words, for messages."""
        where = "" if self.pool is None else f", pool {self.pool}"
        return f"{self.variant}, {self.batch} x {self.context} tokens{where}, {self.kernel}"

    def requests(self, prompts: Sequence[PromptLike], new_tokens: int) -> list[Request]:
        """Return a request for each prompt, with as many equal rows as share the batch evenly among the prompts."""
        shares = [self.batch // len(prompts) + (place < self.batch % len(prompts)) for place in range(len(prompts))]
        return [
            Request([(prompt, self.variant)] * rows, new_tokens)
            for prompt, rows in zip(prompts, shares, strict=True)
            if rows
        ]


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
