"""The interface between a cache and the rows of one layer that are stored in the same form.

Shape suffixes: B rows of the call, H query heads, U KV heads, T tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from kvbench.cache.base import Entry, NewTokens, Reads


class LayerRows(Protocol):
    """The rows of one layer that are stored in the same form."""

    def add(self, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor, later: int = 0) -> None:
        """Store the keys and values of a prompt that the rows keep.

        Args:
            later: about how many tokens later calls will add of the same prompt, the reserved ones included.
        """
        ...

    def attend(
        self,
        rows: tuple[int, ...],
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        scaling: float,
        new: NewTokens | None = None,
    ) -> Tensor:
        """Append T new tokens to `rows`, attend causally, and let the decode policies act: [B, H, T, D].

        Args:
            new: ids of the tokens, for decode policies; without them a policy's plan pins none of them.
        """
        ...

    def release(self, rows: Sequence[int]) -> None:
        """Forget rows. Their memory is free after `compact` at the latest. Ids of rows stored elsewhere do nothing."""
        ...

    def compact(self) -> None:
        """Free all memory of released rows, unless `release` has done so."""
        return

    def settle(self) -> None:
        """Lay out the rows that joined since the last step together with the others, if they are laid out together."""
        return

    def lengths(self, row: int) -> list[int]:
        """Return the stored tokens of a row per KV head."""
        ...

    def peak(self, row: int) -> int:
        """Return the most tokens that a KV head of a row held after a step."""
        ...

    def reads(self, row: int) -> Reads | None:
        """Return how many tokens the query heads of a row read in decode steps; None if they read everything."""
        return None

    def used_bytes(self, row: int) -> int:
        """Return the bytes of the stored tokens of a row."""
        ...

    def slack_bytes(self, row: int) -> int:
        """Return the bytes that are allocated for a row in addition to those of its stored tokens."""
        ...

    def bytes(self) -> int:
        """Return the bytes that are allocated for all rows."""
        ...
