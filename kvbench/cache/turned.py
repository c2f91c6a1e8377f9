"""Keys that a policy turns: they rotate by a position for every token of their head that leaves.

Shape suffixes: B rows, U KV heads, M keys of a head that turn, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.base import Rotate
from kvbench.methods.decoding import DecodePolicy
from kvbench.methods.slots import Slots
from kvbench_kernels.backends import Buffers


@dataclass
class TurnedKeys:
    """The keys that a policy turns, in float32 as they were before the first turn. Roundings then do not add up.

    Attributes:
        k_UMD: the keys.
        known_U: True for heads whose keys have been turned.
    """

    k_UMD: Tensor
    known_U: Tensor


class TurningKeys:
    """The turned keys of the active rows of one policy in one layer.

    Args:
        rows: per row, its keys so far; None for a row of which nothing has turned yet.
        dim: the head dimension.
        rotate: rotates keys by further positions.
    """

    def __init__(
        self, policy: DecodePolicy, slots: Slots, rows: Sequence[TurnedKeys | None], dim: int, rotate: Rotate | None
    ) -> None:
        self._policy, self._rotate = policy, rotate
        shape, device = policy.turned(slots).shape, slots.pos_BUC.device
        self._k_BUMD = torch.zeros(*shape, dim, device=device)
        self._known_BU = torch.zeros(*shape[:2], dtype=torch.bool, device=device)
        for i, row in enumerate(rows):
            if row is not None:
                self._k_BUMD[i], self._known_BU[i] = row.k_UMD, row.known_U

    def of(self, index: int) -> TurnedKeys:
        """Return the keys of a row."""
        return TurnedKeys(self._k_BUMD[index].clone(), self._known_BU[index].clone())

    def turn(self, slots: Slots, buffers: Buffers, start_BU: Tensor, length_BU: Tensor, due_BU: Tensor) -> None:
        """Rotate keys by as many positions as tokens of their head are gone. Device work alone.

        Args:
            start_BU, length_BU: the first slot of each head, and its tokens after others have left.
            due_BU: heads that a token has left.

        Raises:
            ValueError: there is no `rotate`.
        """
        if self._rotate is None:
            raise ValueError("this decode policy turns keys, which needs a view of the model; give the method a feed")
        column_BUM = self._policy.turned(slots)
        column_BUM = torch.where(slots.live_BUC.gather(2, column_BUM), column_BUM, column_BUM[..., :1])
        slot = (start_BU[..., None] + column_BUM).flatten()
        k_BUMD, known_BU = self._k_BUMD, self._known_BU
        now_BUMD = buffers.k_RD[slot].float().view(*column_BUM.shape, -1)
        k_BUMD.copy_(torch.where(known_BU[..., None, None], k_BUMD, now_BUMD))
        known_BU |= due_BU
        gone_BU1 = (slots.seen_B[:, None] - length_BU)[..., None]
        turned_BUMD = self._rotate(k_BUMD.flatten(0, 2), gone_BU1.expand_as(column_BUM).flatten()).view_as(k_BUMD)
        new_BUMD = torch.where(known_BU[..., None, None], turned_BUMD, now_BUMD)
        buffers.k_RD.index_copy_(0, slot, new_BUMD.flatten(0, 2).to(buffers.k_RD.dtype))
