"""The margins of a decode policy: the differences that decide which tokens leave.

Two caches add up attention in different orders, so their numbers differ by float32's rounding. Where two tokens are
worth nearly the same, each cache may drop another one, and both are right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from kvbench.methods.decode.long_minor import DropLongMinor
from kvbench.methods.decoding import DecodePolicy
from kvbench.methods.slots import Slots


@contextmanager
def margins(policy: DecodePolicy) -> Iterator[list[float]]:
    """Collect the margins of all decisions of the policy's class in the block, relative to the numbers compared."""
    kind, near = type(policy), [1.0]
    drop, observe = kind.drop, kind.observe

    def noted_drop(self: DecodePolicy, slots: Slots) -> Tensor:
        worth_BUC = drop(self, slots)
        if slots.limit_BU is not None:
            near.append(_of_worth(worth_BUC, slots))
        return worth_BUC

    def noted_observe(self: DecodePolicy, slots: Slots, weights_BUGTC: Tensor) -> None:
        if isinstance(self, DropLongMinor):
            near.append(_of_shares(weights_BUGTC, slots))
        observe(self, slots, weights_BUGTC)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "drop", noted_drop)
        patch.setattr(kind, "observe", noted_observe)
        yield near


def _of_worth(worth_BUC: Tensor, slots: Slots) -> float:
    """Return the least difference in worth between a token that leaves and one that stays, if they are not both 0."""
    assert slots.limit_BU is not None
    live_BUC = slots.live_BUC
    worth_NC = worth_BUC.double().masked_fill(~live_BUC, torch.inf).flatten(0, 1).sort(-1).values
    held_N = live_BUC.sum(-1).flatten()
    leave_N = held_N - slots.limit_BU.expand(live_BUC.shape[:2]).flatten()
    cut_N = ((leave_N > 0) & (leave_N < held_N)).nonzero().flatten()
    last_N, next_N = (worth_NC[cut_N, leave_N[cut_N].long() + ahead] for ahead in (-1, 0))
    margin_N = (next_N - last_N) / next_N.abs().clamp_min(1e-30)
    margin_N = margin_N[next_N.isfinite() & (next_N != 0)]
    return float(margin_N.min()) if len(margin_N) else 1.0


def _of_shares(weights_BUGTC: Tensor, slots: Slots) -> float:
    """Return the least difference between a weight and the average share that it is compared with.

    A query that sees one token gives it all of its attention, which is exact.
    """
    ahead_T = torch.arange(1 - weights_BUGTC.shape[3], 1)
    seen_BUT = slots.live_BUC.sum(-1, keepdim=True) + ahead_T
    shares_BUGTC = weights_BUGTC * seen_BUT[:, :, None, :, None]
    margin_BUGTC = (shares_BUGTC - 1).abs().masked_fill(seen_BUT[:, :, None, :, None] <= 1, 1.0)
    return float(margin_BUGTC.min())
