"""The plans of rows with a decode policy: the numbers of their heads, and the tokens that never leave.

Generated tokens are told apart by their ids. The host and the device count those that are pinned, by the same rules, so
no step waits for the device.

Shape suffixes: B rows, U KV heads, C slots, X numbers of a plan, N ids, T new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kvbench.methods.decoding import Start

_NO_ID = torch.iinfo(torch.long).max


@dataclass
class RowPins:
    """The plan of one row in one layer, between two layouts of the arena.

    Attributes:
        pinned_UC: True for slots whose token never leaves; column c is slot c of the segment.
        pins_U: True for heads that pin generated tokens with an id in `ids`.
        count: generated tokens with such an id so far.
    """

    numbers_UX: Tensor
    pinned_UC: Tensor
    pins_U: Tensor
    ids: Tensor
    count: int = 0

    def nbytes(self) -> int:
        """Return the bytes of the row's own tensors."""
        return int(self.pinned_UC.nbytes + self.numbers_UX.nbytes + self.pins_U.nbytes)


def row_pins(start: Start) -> RowPins | None:
    """Return the plan of a row after its prefill; None if it has none."""
    plan = start.plan
    if plan is None:
        return None
    pinned_UC = plan.pinned_UT.gather(1, start.pos_UC.long()) & start.live_UC
    return RowPins(plan.numbers_UX, pinned_UC, plan.pins_U, plan.pin_ids)


class Pins:
    """The plans of the active rows of one policy in one layer.

    Args:
        rows: the plan of each row.
        width: columns of a head.

    Attributes:
        numbers_BUX: the numbers of the plans.
        pinned_BUC: True for tokens that never leave; changed in place.
        pinned_BU: generated tokens that each head has pinned, on the device.
    """

    def __init__(self, rows: Sequence[RowPins], width: int, device: torch.device) -> None:
        self._rows = rows
        self.numbers_BUX = torch.stack([pins.numbers_UX for pins in rows]).to(device)
        self.pinned_BUC = torch.stack([F.pad(p.pinned_UC, (0, width - p.pinned_UC.shape[1])) for p in rows]).to(device)
        self._pins_BU = torch.stack([pins.pins_U for pins in rows]).to(device)
        self.pinned_BU = torch.tensor([[pins.count] for pins in rows], device=device) * self._pins_BU
        most = max(1, *(len(pins.ids) for pins in rows))
        self._ids_BN = torch.stack([F.pad(p.ids, (0, most - len(p.ids)), value=_NO_ID) for p in rows]).to(device)
        self._known = [frozenset(pins.ids.tolist()) for pins in rows]

    def count(self, ids: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        """Return how many new tokens of each row are pinned: [B, 1], on the host."""
        return np.array([[sum(i in known for i in row)] for row, known in zip(ids, self._known, strict=True)])

    def append(self, ids_BT: Tensor | None, column_BUT: Tensor) -> None:
        """Mark the new tokens in these columns that heads pin. Device work alone."""
        if ids_BT is None:
            self.pinned_BUC.scatter_(2, column_BUT, False)
            return
        at_BT = torch.searchsorted(self._ids_BN, ids_BT.contiguous()).clamp(max=self._ids_BN.shape[1] - 1)
        hit_BT = self._ids_BN.gather(1, at_BT) == ids_BT
        self.pinned_BUC.scatter_(2, column_BUT, hit_BT[:, None] & self._pins_BU[..., None])
        self.pinned_BU += hit_BT.sum(1, keepdim=True) * self._pins_BU

    def leave(self, row: int, width: int, count: int) -> RowPins:
        """Return a row as it is between two layouts."""
        before = self._rows[row]
        return RowPins(before.numbers_UX, self.pinned_BUC[row, :, :width].clone(), before.pins_U, before.ids, count)

    def nbytes(self, row: int) -> int:
        """Return the bytes of a row's own tensors."""
        return int(self.pinned_BUC[row].nbytes + self.numbers_BUX[row].nbytes + self._pins_BU[row].nbytes)
