"""The last query that found a token important: CORM's score.

Shape suffixes: U KV heads, G query heads per KV head, Q queries of a block, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.base import LayerContext, Score
from kvbench.methods.context import COLUMN_SUM_QUERIES
from kvbench.methods.fields import check_at_least


@dataclass(frozen=True)
class LastImportant(Score):
    """The position of the last of `history` queries that found a token important; -1 if none did.

    CORM (Dai et al. 2024, arXiv 2404.15949). A token is important to a query that sees t tokens if some query head of
    the group gives it at least 1 / t of its attention. A prompt of at most `history` tokens is too short to tell: its
    first query counts as having found all tokens important, so that none leaves before `history` queries are there.
    """

    history: int = 256

    def __post_init__(self) -> None:
        check_at_least(self, "history", 1)

    @property
    def queries(self) -> int:
        """Queries whose attention is held at once: a block."""
        return COLUMN_SUM_QUERIES

    def __call__(self, ctx: LayerContext) -> Tensor:
        """Return [U, T] scores."""
        first = ctx.num_tokens - self.history
        last_UT = torch.full(ctx.k.shape[:2], -1.0 if first > 0 else 0.0, device=ctx.k.device)
        for begin, end, attention_UGQT in ctx.rows(max(0, first)):
            at_Q1 = torch.arange(begin, end, device=ctx.k.device)[:, None]
            important_UQT = (attention_UGQT >= 1 / (at_Q1 + 1)).any(1)
            last_UT[:, :end] = last_UT[:, :end].maximum(torch.where(important_UQT, at_Q1, -1).amax(1).float())
        return last_UT
