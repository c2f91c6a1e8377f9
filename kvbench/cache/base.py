"""The interface between the engine and a cache.

Shape suffixes: B rows of the decode batch, H query heads, U KV heads, T tokens, D head dimension.
A row is one generation: a prompt under one variant. Logical position and stored length are different things: the
engine counts the tokens that were seen, the cache counts the tokens that were kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from kvbench.methods.base import DecodePolicy, Store
from kvbench.methods.context import Kernels

Counts = list[tuple[int, int]]
"""Per layer, what a cache counts on the host: free tokens of every active segment, and appended tokens."""


@dataclass(frozen=True)
class Entry:
    """The part of one layer's prompt that one row keeps.

    Args:
        row: id of the row.
        keep_UT: bool mask of kept tokens.
        reserve: tokens that will be appended, for which room is made at once.
        store: storage part of the method; None for plain rows.
        policy: decode part of the method; None for rows that evict nothing while generating.
        score_UT: the method's scores, where a policy starts from them.
        limit_U: tokens that a policy holds in each KV head: the head's share of the budget.
    """

    row: int
    keep_UT: Tensor
    reserve: int
    store: Store | None = None
    policy: DecodePolicy | None = None
    score_UT: Tensor | None = None
    limit_U: Sequence[int] | None = None


class KVCache(Protocol):
    """The keys and values of all layers and rows.

    Attributes:
        kernel: name of what attends to them.
        prompt: kernels for prompts (`kvbench_kernels.ops.prompt`); None where there are none.
    """

    @property
    def kernel(self) -> str: ...

    @property
    def prompt(self) -> Kernels | None: ...

    def add(self, layer: int, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor) -> None:
        """Store what the rows keep of a prompt's keys and values."""
        ...

    def attend(
        self, layer: int, rows: Sequence[int], q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float
    ) -> Tensor:
        """Append T new tokens to `rows`, attend causally, apply decode policies. Returns [B, H, T, D]."""
        ...

    def release(self, rows: Sequence[int]) -> None:
        """Forget finished rows and free their memory."""
        ...

    def lengths(self, row: int) -> list[list[int]]:
        """Return the stored tokens per layer and KV head."""
        ...

    def used_bytes(self, row: int) -> int:
        """Return the bytes of the stored tokens of a row."""
        ...

    def slack_bytes(self, row: int) -> int:
        """Return the bytes that a row holds in addition to its stored tokens, for tokens to come."""
        ...

    def bytes(self) -> int:
        """Return the bytes allocated for all rows."""
        ...


@runtime_checkable
class Recordable(Protocol):
    """A cache whose decode steps can be recorded as a CUDA graph.

    A recorded step does its work on the device alone. The cache's counts on the host are brought up to date by
    `advance`, once per replay.
    """

    @property
    def moves(self) -> int:
        """Number of moves in memory so far; a graph is valid as long as it stays the same."""
        ...

    def room(self, rows: Sequence[int]) -> int:
        """Return how many tokens these rows can append with work on the device alone; 0 if more is needed."""
        ...

    def advance(self, rows: Sequence[int], tokens: int) -> None:
        """Count tokens that a recorded step appended to `rows`."""
        ...

    def counts(self) -> Counts:
        """Return the counts on the host, for `reset_counts` after a recording that failed."""
        ...

    def reset_counts(self, counts: Counts) -> None:
        """Restore the counts on the host."""
        ...
