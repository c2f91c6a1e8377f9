"""Budgets: tokens per KV head, a share of the prompt's tokens, or a share of the full cache's bytes.

Written 128, 0.2 and 0.2B. Nothing here needs torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from kvbench.common.kinds import is_number
from kvbench.methods.dials import MOST, as_plain_number

if TYPE_CHECKING:
    from kvbench.methods.storage import Store

_BYTES = re.compile(r"\s*([0-9]*\.[0-9]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)\s*B\s*")
_NUMBER = re.compile(r"\d+|\d*\.\d+")


@dataclass(frozen=True)
class ByteShare:
    """A share of the bytes that the plain cache of the same prompt would take, over the layers that are compressed."""

    share: float

    def __str__(self) -> str:
        return f"{self.share}B"


Budget = int | float | ByteShare
"""Tokens per KV head, a share of the compressed tokens, or a share of the full cache's bytes."""


class Allowance(NamedTuple):
    """The tokens that a budget allows on a prompt.

    Attributes:
        tokens: per KV head.
        extra: further tokens over all layers and heads.
        stores: the form of each layer where every token stays and a budget in bytes chooses the forms; else empty.
    """

    tokens: int
    extra: int = 0
    stores: Sequence[Store] = ()


def check_budget(budget: Any) -> Budget:
    """Return a budget: an int is tokens per KV head, a float in (0, 1] a share, a text such as "0.25B" bytes.

    Raises:
        ValueError: one line naming `budget`.
    """
    budget = as_plain_number(budget)
    if isinstance(budget, str | ByteShare):
        return _byte_share(budget)
    if not is_number(budget):
        raise ValueError(f"budget={budget}: give tokens per KV head as an integer, or a share in (0, 1] as a float")
    if isinstance(budget, int):
        if budget <= 0:
            raise ValueError(f"budget={budget}: tokens per KV head must be at least 1")
        if budget > MOST:
            raise ValueError(f"budget={budget}: tokens per KV head must be at most {MOST}")
    elif not (math.isfinite(budget) and 0 < budget <= 1):
        raise ValueError(f"budget={budget}: a share must lie in (0, 1]; tokens are an integer such as budget=128")
    return budget


def _byte_share(budget: str | ByteShare) -> ByteShare:
    match = _BYTES.fullmatch(str(budget))
    if match is None or match[1] == ".":
        if isinstance(budget, str) and _NUMBER.fullmatch(budget):
            raise ValueError(f"budget={budget!r}: is a text; give the number without quotes, budget={budget}")
        raise ValueError(
            f"budget={budget}: give tokens such as 128, a share of the tokens such as 0.2, or a share of the full "
            "cache's bytes such as 0.2B"
        )
    share = float(match[1])
    if not 0 < share <= 1:
        raise ValueError(f"budget={budget}: a share of the full cache's bytes must lie in (0, 1], such as 0.2B")
    return ByteShare(share)


def as_stored(budget: Budget | str | None) -> int | float | str | None:
    """Return a budget as it is stored in JSON."""
    return str(budget) if isinstance(budget, ByteShare) else budget
