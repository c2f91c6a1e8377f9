"""TOVA (Oren et al. 2024, arXiv 2401.06104): the last query decides which token leaves, for all heads of a layer.

Shape suffixes: as in `kvbench.methods.decoding`; H query heads, T tokens of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvbench.methods.base import LayerContext, Score
from kvbench.methods.decoding import DecodePolicy
from kvbench.methods.scores.groups import add_up
from kvbench.methods.slots import Slots


@dataclass(frozen=True)
class LastQuery(Score):
    """Attention of the last query of the prompt, mean over all query heads, the same for every KV head."""

    @property
    def queries(self) -> int:
        """Queries whose attention is held at once."""
        return 1

    @property
    def is_shared(self) -> bool:
        return True

    def __call__(self, ctx: LayerContext) -> Tensor:
        """Return [U, T] scores."""
        attention_HT = ctx.window_attention(1).flatten(0, 2)
        mean_T: Tensor = add_up(attention_HT, 0) / len(attention_HT)
        return mean_T.expand(ctx.num_kv_heads, -1)


@dataclass(frozen=True)
class DropLeastAttended(DecodePolicy):
    """A policy that drops the token with the least attention of the newest query, mean over all heads of the layer.

    No token is protected, neither sinks nor the newest token.
    """

    reads: ClassVar[str] = "last"
    remembers: ClassVar[bool] = False
    heads_alike: ClassVar[bool] = True

    def observe(self, slots: Slots, weights_BUGTC: Tensor) -> None:
        """Remember the attention of the newest query."""
        slots.state_BUC[:] = slots.over_heads(add_up(weights_BUGTC[:, :, :, -1], 2) / weights_BUGTC.shape[2])

    def drop(self, slots: Slots) -> Tensor:
        """Return the attention of the newest query."""
        return slots.state_BUC
