"""Keys that a policy turns: they rotate by a position for every later token of their head that leaves.

Shape suffixes: B rows, U KV heads, C slots (padded to the longest head), M keys of a head that turn, D head dimension.
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
    """The keys that a policy turns, as they were before the first turn. Roundings then do not add up.

    Attributes:
        k_UMD: the keys of some tokens in float32, or of all slots in the cache's dtype.
        known: True for heads [U] whose keys have been turned, or for slots [U, M] whose keys are known.
    """

    k_UMD: Tensor
    known: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return int(self.k_UMD.nbytes + self.known.nbytes)


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
                self._k_BUMD[i], self._known_BU[i] = row.k_UMD, row.known

    def of(self, index: int, width: int) -> TurnedKeys:
        """Return the keys of a row, whose heads have up to `width` tokens."""
        return TurnedKeys(self._k_BUMD[index].clone(), self._known_BU[index].clone())

    def nbytes(self, index: int) -> int:
        """Return 0: a few keys do not count."""
        return 0

    def move(self, to_BUn: Tensor, source_BUn: Tensor) -> None:
        """Do nothing: the order of the keys is the policy's."""

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


class TurningSlots:
    """The turned keys of the active rows of a policy whose tokens all have the positions of their places in the cache.

    Args:
        slots, rows, rotate: as for `TurningKeys`.
        width: slots of each head.
        like: a tensor of the dtype and device of the keys, whose last dimension is theirs.
    """

    def __init__(
        self, slots: Slots, rows: Sequence[TurnedKeys | None], width: int, like: Tensor, rotate: Rotate | None
    ) -> None:
        self._rotate, shape = rotate, (*slots.pos_BUC.shape[:2], width)
        self._k_BUCD = like.new_zeros(*shape, like.shape[-1])
        self._known_BUC = torch.zeros(*shape, dtype=torch.bool, device=like.device)
        self._columns_C = torch.arange(width, device=like.device)
        for i, row in enumerate(rows):
            if row is not None:
                count = row.k_UMD.shape[1]
                self._k_BUCD[i, :, :count], self._known_BUC[i, :, :count] = row.k_UMD, row.known

    def of(self, index: int, width: int) -> TurnedKeys:
        """Return the keys of a row, whose heads have up to `width` tokens."""
        return TurnedKeys(self._k_BUCD[index, :, :width].clone(), self._known_BUC[index, :, :width].clone())

    def nbytes(self, index: int) -> int:
        """Return the bytes of a row."""
        return int(self._k_BUCD[index].nbytes + self._known_BUC[index].nbytes)

    def move(self, to_BUn: Tensor, source_BUn: Tensor) -> None:
        """Copy keys from slots to slots of the same head, as tokens are."""
        self._known_BUC.scatter_(2, to_BUn, self._known_BUC.gather(2, source_BUn))
        to_BUnD, source_BUnD = (x[..., None].expand(-1, -1, -1, self._k_BUCD.shape[-1]) for x in (to_BUn, source_BUn))
        self._k_BUCD.scatter_(2, to_BUnD, self._k_BUCD.gather(2, source_BUnD))

    def turn(self, slots: Slots, buffers: Buffers, start_BU: Tensor, length_BU: Tensor, due_BU: Tensor) -> None:
        """Rotate each key by as many positions as later tokens of its head are gone; see `TurningKeys.turn`."""
        if self._rotate is None:
            raise ValueError("this decode policy turns keys, which needs a view of the model")
        live_BUC = self._columns_C < length_BU[..., None]
        columns_BUC = torch.where(live_BUC, self._columns_C, 0)
        slot = (start_BU[..., None] + columns_BUC).flatten().clamp(max=len(buffers.k_RD) - 1)
        k_BUCD, known_BUC = self._k_BUCD, self._known_BUC
        now_BUCD = buffers.k_RD[slot].view(k_BUCD.shape)
        k_BUCD.copy_(torch.where((known_BUC & live_BUC)[..., None], k_BUCD, now_BUCD))
        known_BUC.copy_(live_BUC)
        position_BUC = torch.where(live_BUC, slots.pos_BUC, 2**30).long()
        place_BUC = position_BUC.argsort(-1).argsort(-1)
        later_BUC = slots.seen_B[:, None, None] - position_BUC - (length_BU[..., None] - place_BUC)
        turned = self._rotate(k_BUCD.flatten(0, 2).float(), torch.where(live_BUC, later_BUC, 0).flatten())
        turns_BUC = live_BUC & due_BU[..., None]
        new = torch.where(turns_BUC.flatten()[:, None], turned.to(now_BUCD.dtype), now_BUCD.flatten(0, 2))
        live = live_BUC.flatten()  # of slots without a token, the first that has one is written again
        at = torch.where(live, torch.arange(len(live), device=live.device), live.int().argmax())
        buffers.k_RD.index_copy_(0, slot[at], new[at])
