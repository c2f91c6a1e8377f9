"""The position of a token: StreamingLLM's score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.base import LayerContext, Score


@dataclass(frozen=True)
class Recency(Score):
    """The position in the prompt: later tokens score higher.

    With protected sinks this is StreamingLLM (Xiao et al. 2023, arXiv 2309.17453).
    """

    @property
    def is_shared(self) -> bool:
        """True: a position is the same for all heads."""
        return True

    @property
    def is_positional(self) -> bool:
        """True: it is the position."""
        return True

    def __call__(self, ctx: LayerContext) -> Tensor:
        """Return [U, T] scores."""
        positions = torch.arange(ctx.num_tokens, dtype=torch.float32, device=ctx.k.device)
        return positions.expand(ctx.num_kv_heads, -1)
