"""The slots of a layer, or of several, as a decode policy sees them: those of all rows of the policy at once.

Shape suffixes: B rows of one policy, U KV heads, G query heads per KV head, C slots (padded to the longest head),
T new tokens of a step, N slots to draw for, X numbers of a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.draws import stirred, uniform
from kvbench.methods.scores.groups import add_up

LATER = 2**30  # a position that no token has


@dataclass
class Slots:
    """The slots of all rows of one policy. A head's slots are in no order.

    A row is that of one layer. The rows of several layers may be given at once, so nothing may depend on the others.

    Attributes:
        span_B: int32, tokens of the compressed prompt.
        seen_B: int32, tokens of the sequence, those of this step included.
        pos_BUC: int32, position of the slot's token in the sequence.
        live_BUC: True for slots that hold a token; everything else about the others is undefined.
        state_BUC: float32, the policy's own; moves with the token, and is 0 for a new one. Changed in place.
        limit_BU: tokens that each head may hold; None for a policy without a limit.
        aligned: True if column c holds the same token in all heads of a row.
        draws_BU1: int64, from which the random numbers of each head follow; see `head_draws`.
        numbers_BUX: int32, the numbers of the heads' plans; None for a policy that follows no plan.
        pinned_BUC: True for tokens that never leave, whatever `drop` returns; None without a plan.
    """

    span_B: Tensor
    seen_B: Tensor
    pos_BUC: Tensor
    live_BUC: Tensor
    state_BUC: Tensor
    limit_BU: Tensor | None = None
    aligned: bool = False
    draws_BU1: Tensor | None = None
    numbers_BUX: Tensor | None = None
    pinned_BUC: Tensor | None = None

    @classmethod
    def whole(cls, span: int, state_UC: Tensor) -> Slots:
        """Return the slots of a row that has seen the first C tokens of a prompt of `span` and still holds them all."""
        (heads, seen), device = state_UC.shape, state_UC.device
        pos_UC = torch.arange(seen, dtype=torch.int32, device=device).expand(heads, seen)
        span_1, seen_1 = (torch.tensor([tokens], dtype=torch.int32, device=device) for tokens in (span, seen))
        live_UC = torch.ones_like(state_UC, dtype=torch.bool)
        return cls(span_1, seen_1, pos_UC[None], live_UC[None], state_UC[None], aligned=True)

    def rows(self, part: slice) -> Slots:
        """Return a view of some of the rows."""
        limit_BU = None if self.limit_BU is None else self.limit_BU[part]
        return Slots(
            self.span_B[part],
            self.seen_B[part],
            self.pos_BUC[part],
            self.live_BUC[part],
            self.state_BUC[part],
            limit_BU,
            self.aligned,
            None if self.draws_BU1 is None else self.draws_BU1[part],
            None if self.numbers_BUX is None else self.numbers_BUX[part],
            None if self.pinned_BUC is None else self.pinned_BUC[part],
        )

    def uniform(self, column_BUN: Tensor) -> Tensor:
        """Return random numbers [B, U, N] in [0, 1) for the tokens in some slots.

        They depend on the run's seed, the prompt, layer and head, and the token's position: on nothing else in a batch.
        A policy that asks for them says `draws = True`.
        """
        assert self.draws_BU1 is not None
        return uniform(self.pos_BUC.gather(2, column_BUN), state=self.draws_BU1)

    def first(self, tokens: int) -> Tensor:
        """Return [B, U, C]: True for the first `tokens` of the sequence, or as many as the head may hold."""
        return self.pos_BUC < self._held(tokens)

    def recent(self, tokens: int | Tensor) -> Tensor:
        """Return [B, U, C]: True for the last `tokens` of the sequence, or as many as the head may hold.

        Args:
            tokens: a number, or a tensor [B, U, 1] or a scalar.
        """
        return self.pos_BUC >= self.seen_B[:, None, None] - self._held(tokens)

    def _held(self, tokens: int | Tensor) -> int | Tensor:
        """Return a number of tokens, or a head's limit where that is smaller: what is protected must fit into it."""
        return tokens if self.limit_BU is None else self.limit_BU[..., None].clamp(max=tokens).int()

    def generated(self) -> Tensor:
        """Return [B, U, C]: True for tokens that followed the compressed prompt."""
        return self.pos_BUC >= self.span_B[:, None, None]

    def over_heads(self, x_BUC: Tensor) -> Tensor:
        """Return [B, U, C]: the mean over all KV heads of what a token has; 0 counts for heads that do not hold it."""
        x_BUC = x_BUC.masked_fill(~self.live_BUC, 0)
        heads = x_BUC.shape[1]
        if self.aligned:
            return (add_up(x_BUC, 1) / heads)[:, None].expand_as(x_BUC)
        # Heads hold different tokens: find each head's tokens in the sorted positions of every other head.
        pos_BUC = torch.where(self.live_BUC, self.pos_BUC, LATER)
        sorted_BUC, order_BUC = pos_BUC.sort(-1)
        in_order_BUC = x_BUC.gather(-1, order_BUC)
        total_BUC = torch.zeros_like(x_BUC)
        for head in range(heads):
            other_BUC = sorted_BUC[:, head : head + 1].expand_as(sorted_BUC).contiguous()
            at_BUC = torch.searchsorted(other_BUC, pos_BUC.contiguous()).clamp(max=pos_BUC.shape[-1] - 1)
            same_BUC = other_BUC.gather(-1, at_BUC) == pos_BUC
            total_BUC += in_order_BUC[:, head : head + 1].expand_as(x_BUC).gather(-1, at_BUC) * same_BUC
        return total_BUC / heads


def head_draws(seeds: Sequence[int], layer: int, heads: int, device: torch.device) -> Tensor:
    """Return [B, U, 1] int64: what the random numbers of a layer's heads begin from, by the seed of each row."""
    seed_B11, head_U1 = torch.tensor(seeds, device=device)[:, None, None], torch.arange(heads, device=device)[:, None]
    return stirred(seed_B11, layer, head_U1)


def over_queries(weights_BUGTC: Tensor) -> Tensor:
    """Return [B, U, G, C]: the attention of all queries of a step together."""
    return weights_BUGTC[:, :, :, 0] if weights_BUGTC.shape[3] == 1 else weights_BUGTC.sum(3)
