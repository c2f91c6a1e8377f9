"""Rows that evict while decoding, as they are between two layouts of the arena. They are plain segments of it.

Shape suffixes: B rows, U KV heads, C slots, N steps, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kvbench.cache.base import Entry, Rotate
from kvbench.cache.pins import RowPins, row_pins
from kvbench.cache.turned import TurnedKeys
from kvbench.methods import policy_answers
from kvbench.methods.decoding import Decoding, Start
from kvbench.methods.slots import Slots, head_draws


@dataclass
class PolicyRow:
    """A row with a policy in one layer, between two layouts of the arena."""

    decoding: Decoding
    pos_UC: Tensor
    state_UC: Tensor
    base_U: NDArray[np.int64]
    layer: int
    span: int
    seen: int
    peak: int  # most tokens that a head held after a step
    rotate: Rotate | None = None
    seed: int = 0
    turned: TurnedKeys | None = None
    pins: RowPins | None = None

    def nbytes(self) -> int:
        """Return the bytes of positions, state, plan, and of keys that the policy turns."""
        of_keys = self.turned.nbytes if self.turned is not None and self.decoding.policy.turns_all else 0
        of_plan = 0 if self.pins is None else self.pins.nbytes()
        return int(self.pos_UC.nbytes + self.state_UC.nbytes) + of_plan + of_keys

    def most_reserved(self, entry: Entry) -> int:
        """Return the slots to reserve in addition to the kept tokens: no more than the limit and the buffer ask for."""
        kept = entry.keep_UT.sum(1).cpu()
        steps_N1 = torch.arange(1, entry.reserve + 1)[:, None]  # a limit may be higher in between than at the end
        base_NU = torch.from_numpy(self.base_U).expand(len(steps_N1), -1)
        span_N1, policy = torch.full_like(steps_N1, self.span), self.decoding.policy
        limit_NU = policy_answers.limits(policy, base_NU, steps_N1, self.layer, span_N1)
        pins = self.pins is not None and bool(self.pins.pins_U.any())
        if limit_NU is None or pins or not entry.reserve:
            return entry.reserve
        ahead = int((limit_NU - kept).max()) + self.decoding.buffer + entry.at_once
        return min(entry.reserve, max(entry.at_once, ahead))


def first_slots(entry: Entry, layer: int, num_layers: int) -> Start:
    """Return the slots of a row after its prefill: the kept tokens by position, those of every head in front."""
    kept_U = entry.keep_UT.sum(1)
    counts = kept_U.tolist()
    if min(counts) == max(counts):
        order_UC = entry.keep_UT.nonzero()[:, 1].view(len(counts), -1)
    else:
        order_UC = (~entry.keep_UT).int().argsort(dim=1, stable=True)[:, : max(counts)]
    live_UC = torch.arange(order_UC.shape[1], device=order_UC.device) < kept_U[:, None]
    score_UC = None if entry.score_UT is None else entry.score_UT.gather(1, order_UC)
    return Start(layer, num_layers, entry.keep_UT.shape[1], order_UC.int(), live_UC, score_UC, entry.followed)


def begin(entry: Entry, layer: int, num_layers: int) -> PolicyRow:
    """Return a row with a policy from the tokens that it keeps of its prompt."""
    assert entry.decoding is not None and entry.base_U is not None
    start = first_slots(entry, layer, num_layers)
    state_UC = policy_answers.first_state(entry.decoding.policy, start)
    peak = int(start.live_UC.sum(1).max())
    return PolicyRow(
        entry.decoding,
        start.pos_UC,
        state_UC,
        np.array(entry.base_U),
        layer,
        start.span,
        start.span,
        peak,
        entry.rotate,
        entry.seed,
        pins=row_pins(start),
    )


def stacked_slots(rows: Sequence[PolicyRow], length_BU: Tensor, width: int) -> Slots:
    """Return the slots of rows of one policy in one layer, `width` for each head."""
    device = length_BU.device
    return Slots(
        torch.tensor([row.span for row in rows], dtype=torch.int32, device=device),
        torch.tensor([row.seen for row in rows], dtype=torch.int32, device=device),
        _stacked([row.pos_UC for row in rows], width),
        torch.arange(width, device=device) < length_BU[..., None],
        _stacked([row.state_UC for row in rows], width),
        aligned=bool((length_BU == length_BU[:, :1]).all()) and all(map(_stays_aligned, rows)),
        draws_BU1=head_draws([row.seed for row in rows], rows[0].layer, length_BU.shape[1], device),
    )


def _stacked(xs: Sequence[Tensor], width: int) -> Tensor:
    return torch.stack([F.pad(x, (0, width - x.shape[1])) for x in xs])


def _stays_aligned(row: PolicyRow) -> bool:
    """Return True if all heads of a row hold the same tokens in the same columns, now and after further steps."""
    same_limits = row.pins is None and bool((row.base_U == row.base_U[0]).all())
    return row.decoding.policy.heads_alike and same_limits and bool((row.pos_UC == row.pos_UC[:1]).all())
