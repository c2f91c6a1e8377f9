"""What the engine asks of a cache.

Shape suffixes: B rows of the decode batch, H query heads, U KV heads, T tokens, D head dimension.
A row is one generation: a prompt under one variant. Logical position and stored length are different things:
the engine counts tokens seen, the cache counts tokens kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """What one row keeps of one layer's prompt.

    Args:
        row: id of the row.
        keep_UT: bool mask of kept tokens.
        reserve: tokens that will be appended, for which room is made at once.
        store: storage part of the method, or None for plain rows.
        policy: decode part of the method, or None.
        score_UT: the method's scores, where a policy starts from them.
        tokens: budget per KV head, where a policy holds it.
    """

    row: int
    keep_UT: Tensor
    reserve: int
    store: Any = None
    policy: Any = None
    score_UT: Tensor | None = None
    tokens: int | None = None


class KVCache(Protocol):
    """All layers' keys and values of all rows.

    Attributes:
        kernel: names what attends to them.
        prompt: kernels for prompts, where there are some (`kvbench_kernels.ops.prompt`).
    """

    kernel: str
    prompt: Any

    @property
    def moves(self) -> int:
        """How many times something was moved in memory."""
        ...

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

    def room(self, rows: Sequence[int]) -> int:
        """Tokens that steps of these rows can append with nothing but work on the device; 0 if more is needed."""
        ...

    def advance(self, rows: Sequence[int], tokens: int) -> None:
        """Count tokens that were appended to `rows` by a recorded step."""
        ...

    def counts(self) -> Any:
        """What is counted on the host, for `reset_counts` after a step that was recorded in vain."""
        ...

    def reset_counts(self, counts: Any) -> None: ...

    def lengths(self, row: int) -> list[list[int]]:
        """Stored tokens per layer and KV head."""
        ...

    def used_bytes(self, row: int) -> int:
        """Bytes of the stored tokens of a row."""
        ...

    def slack_bytes(self, row: int) -> int:
        """Bytes a row holds beyond its stored tokens, for tokens to come."""
        ...

    def bytes(self) -> int:
        """Bytes allocated for all rows."""
        ...
