"""The operations in plain torch: the specification, and what runs on a CPU.

Shape suffixes: R slots of the flat buffer, S segments (row x KV head), G query heads per KV head, T new tokens,
D head dimension. A segment lives in slots start_S .. start_S + capacity; the first length_S of them are alive.
Segments of nearly equal capacity lie next to each other in a `Slab`, where all have the same capacity, so that a
slab is a dense [segments, capacity, D] view of the buffer and one call attends to all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Slab:
    """Segments [begin, end) of equal `capacity`, from slot `first` on."""

    first: int
    capacity: int
    begin: int
    end: int

    def view(self, buffer_RD: Tensor) -> Tensor:
        """[segments, capacity, D] without a copy."""
        slots = (self.end - self.begin) * self.capacity
        return buffer_RD[self.first : self.first + slots].view(self.end - self.begin, self.capacity, -1)


def ragged_append(k_RD: Tensor, v_RD: Tensor, slot_S: Tensor, k_STD: Tensor, v_STD: Tensor) -> None:
    """Write T new tokens of each segment into its slots from `slot_S` on, in place: O(new tokens)."""
    tokens = k_STD.shape[1]
    slots = (slot_S[:, None] + torch.arange(tokens, device=slot_S.device)).flatten()
    k_RD.index_copy_(0, slots, k_STD.flatten(0, 1))
    v_RD.index_copy_(0, slots, v_STD.flatten(0, 1))


def ragged_decode(
    q_SGTD: Tensor,
    k_RD: Tensor,
    v_RD: Tensor,
    slabs: Sequence[Slab],
    length_S: Tensor,
    lengths: Sequence[int],
    scaling: float,
    wanted: Sequence[bool] | None = None,
    bias_R: Tensor | None = None,
) -> Tensor:
    """Attention of the T newest tokens of every segment over its live slots, causal among the new ones.

    Args:
        q_SGTD: queries, segments in slab order.
        length_S: live slots including the new tokens, on the device of the buffers.
        lengths: the same on the host.
        wanted: segments whose output is read, where not all are; that of the others is undefined.
        bias_R: [R] zero on live slots, -inf on the others, in the dtype of q; spares making masks for a single token.

    Returns:
        [S, G, T, D], segments in slab order.
    """
    _, group, tokens, dim = q_SGTD.shape
    out_SGTD = torch.empty_like(q_SGTD)
    slot = torch.arange(max(lengths), device=q_SGTD.device)
    # token t of T sees the slots before itself: slot < length - T + t + 1
    visible_ST = length_S[:, None] + torch.arange(1 - tokens, 1, device=q_SGTD.device)
    for slab in slabs:
        k, v = slab.view(k_RD), slab.view(v_RD)
        mine = list(range(slab.begin, slab.end))
        at: slice | Tensor = slice(slab.begin, slab.end)
        if wanted is not None:
            mine = [i for i in mine if wanted[i]]
            if not mine:
                continue
            if 2 * len(mine) <= slab.end - slab.begin:  # copying the few costs less than attending to all
                at = torch.tensor(mine, device=q_SGTD.device)
                k, v = k[at - slab.begin], v[at - slab.begin]
            else:
                mine = list(range(slab.begin, slab.end))
        longest, shortest = max(lengths[i] for i in mine), min(lengths[i] for i in mine)
        mask = None
        if tokens == 1 and bias_R is not None and shortest < longest:
            mask = slab.view(bias_R[:, None])[..., 0]
            mask = (mask if isinstance(at, slice) else mask[at - slab.begin])[:, None, None, :longest]
        elif tokens > 1 or shortest < longest:
            mask = (slot[:longest] < visible_ST[at, :, None])[:, None]  # [s, 1, T, longest]
            if tokens > 1:
                mask = mask.repeat(1, 1, group, 1)  # the rows of q below are G-major, T-minor
        q = q_SGTD[at].reshape(len(mine), 1, group * tokens, dim)
        out = F.scaled_dot_product_attention(
            q, k[:, None, :longest], v[:, None, :longest], attn_mask=mask, scale=scaling
        )
        out_SGTD[at] = out.view(len(mine), group, tokens, dim)
    return out_SGTD
