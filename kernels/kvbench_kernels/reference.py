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

    def view(self, buffer_RD: Tensor, longest: int) -> Tensor:
        """[segments, 1, longest, D]: the first `longest` slots of each segment, without a copy."""
        dim = buffer_RD.shape[1]
        stride = self.capacity * dim
        first = buffer_RD.storage_offset() + self.first * dim
        return buffer_RD.as_strided((self.end - self.begin, 1, longest, dim), (stride, stride, dim, 1), first)

    def bias(self, bias_R: Tensor, longest: int) -> Tensor:
        """[segments, 1, 1, longest]: the same of a bias."""
        stride = self.capacity
        first = bias_R.storage_offset() + self.first
        return bias_R.as_strided((self.end - self.begin, 1, 1, longest), (stride, stride, stride, 1), first)


def ragged_append(
    k_RD: Tensor, v_RD: Tensor, slot_S: Tensor, k_STD: Tensor, v_STD: Tensor, bias_R: Tensor | None = None
) -> None:
    """Write T new tokens of each segment into its slots from `slot_S` on, in place: O(new tokens).

    Args:
        bias_R: as in `ragged_decode`; the slots come alive.
    """
    tokens = k_STD.shape[1]
    slots = slot_S if tokens == 1 else (slot_S[:, None] + torch.arange(tokens, device=slot_S.device)).flatten()
    k_RD.index_copy_(0, slots, k_STD.flatten(0, 1))
    v_RD.index_copy_(0, slots, v_STD.flatten(0, 1))
    if bias_R is not None:
        bias_R.index_fill_(0, slots, 0)


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
    _, group, tokens, _ = q_SGTD.shape
    q_S1QD = q_SGTD.flatten(1, 2)[:, None]  # Q = G x T, G-major
    if tokens > 1 or bias_R is None:
        slot = torch.arange(max(lengths), device=q_SGTD.device)
        # token t of T sees the slots before itself: slot < length - T + t + 1
        visible_ST = length_S[:, None] + torch.arange(1 - tokens, 1, device=q_SGTD.device)
    outs = []
    for slab in slabs:
        all_of = slice(slab.begin, slab.end)
        some = [i for i in range(slab.begin, slab.end) if wanted[i]] if wanted is not None else []
        if wanted is not None and not some:
            outs.append(torch.zeros_like(q_S1QD[all_of]))
            continue
        few = wanted is not None and 2 * len(some) <= slab.end - slab.begin
        mine = [lengths[i] for i in some] if few else lengths[all_of]
        longest, shortest = max(mine), min(mine)
        k, v = slab.view(k_RD, longest), slab.view(v_RD, longest)
        mask = None
        if tokens == 1 and shortest < longest and bias_R is not None:
            mask = slab.bias(bias_R, longest)
        elif tokens > 1 or shortest < longest:
            mask = (slot[:longest] < visible_ST[all_of, :, None])[:, None].repeat(1, 1, group, 1)
        if few:  # copying the few costs less than attending to all
            at = torch.tensor(some, device=q_SGTD.device)
            near = at - slab.begin
            out = torch.zeros_like(q_S1QD[all_of])
            out[near] = _attend(q_S1QD[at], k[near], v[near], None if mask is None else mask[near], scaling)
        else:
            out = _attend(q_S1QD[all_of], k, v, mask, scaling)
        outs.append(out)
    return torch.cat(outs)[:, 0].unflatten(1, (group, tokens))


def _attend(q_S1QD: Tensor, k_S1LD: Tensor, v_S1LD: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Attention of a few queries a segment. On a CPU two products read the cache up to a third faster than SDPA."""
    if q_S1QD.device.type != "cpu" or q_S1QD.dtype != torch.float32 or (mask is not None and mask.dtype == torch.bool):
        return F.scaled_dot_product_attention(q_S1QD, k_S1LD, v_S1LD, attn_mask=mask, scale=scaling)
    q_SQD, k_SDL = q_S1QD[:, 0], k_S1LD[:, 0].transpose(1, 2)
    if mask is None:
        logits_SQL = torch.bmm(q_SQD * scaling, k_SDL)
    else:
        logits_SQL = torch.baddbmm(mask[:, 0], q_SQD, k_SDL, alpha=scaling)
    return torch.bmm(logits_SQL.softmax(-1), v_S1LD[:, 0])[:, None]
