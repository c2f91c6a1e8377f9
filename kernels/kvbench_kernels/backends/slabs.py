"""Backends `sdpa` and `torch`: one call per slab, a run of segments of the same capacity."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench_kernels.backends.base import Backend, Buffers, Lanes, append, queries
from kvbench_kernels.ops.weights import softmax_over_visible

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]


def sdpa(q_S1QD: Tensor, k_S1LD: Tensor, v_S1LD: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Attend with a few queries per segment."""
    return F.scaled_dot_product_attention(q_S1QD, k_S1LD, v_S1LD, attn_mask=mask, scale=scaling)


def products(q_S1QD: Tensor, k_S1LD: Tensor, v_S1LD: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Attend by two matrix products, which read the cache up to a third faster than SDPA on a CPU.

    16-bit types go to SDPA, because a matrix product would round their logits. A mask of booleans goes there too: it
    belongs to a call with several tokens.
    """
    if q_S1QD.dtype not in (torch.float32, torch.float64) or (mask is not None and mask.dtype == torch.bool):
        return sdpa(q_S1QD, k_S1LD, v_S1LD, mask, scaling)
    q_SQD, k_SDL = q_S1QD[:, 0], k_S1LD[:, 0].transpose(1, 2)
    if mask is None:
        logits_SQL = torch.bmm(q_SQD * scaling, k_SDL)
    else:
        logits_SQL = torch.baddbmm(mask[:, 0], q_SQD, k_SDL, alpha=scaling)
    return torch.bmm(logits_SQL.softmax(-1), v_S1LD[:, 0])[:, None]


class SlabBackend(Backend):
    """Attention with one call of `attend` per slab. It needs the lengths on the host."""

    needs_bias = True

    def __init__(self, name: str, attend: Attend) -> None:
        self.name, self._attend = name, attend

    def append_and_attend(
        self,
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        buffers: Buffers,
        lanes: Lanes,
        scaling: float,
        lengths: Callable[[], Sequence[int]] | None = None,
        settled: bool = False,
    ) -> Tensor:
        append(buffers, lanes, k_BUTD, v_BUTD)
        group = q_BHTD.shape[1] // k_BUTD.shape[1]
        if lengths is None:
            raise ValueError(f"kernel={self.name}: needs the lengths on the host")
        q_SGTD = queries(lanes, q_BHTD, group)
        out_SGTD = attend_to_slabs(self._attend, q_SGTD, buffers, lengths(), scaling, lanes.wanted)
        return out_SGTD[lanes.index_N].reshape(q_BHTD.shape)

    def weights(self, q_NGTD: Tensor, buffers: Buffers, lanes: Lanes, scaling: float, width: int) -> Tensor:
        return weights_of_slabs(q_NGTD, buffers, lanes, scaling, width)


def weights_of_slabs(q_NGTD: Tensor, buffers: Buffers, lanes: Lanes, scaling: float, width: int) -> Tensor:
    """Return the attention weights [N, G, T, width] by one matrix product per slab; see `Backend.weights`."""
    q_NQD = q_NGTD.flatten(1, 2).float() * scaling
    logits_NQC = q_NQD.new_zeros(*q_NQD.shape[:2], width)
    for slab, at, lane in lanes.in_slabs(buffers.slabs):
        reach = min(slab.capacity, width)
        k_nLD = slab.view(buffers.k_RD, reach)[:, 0]
        k_nLD = (k_nLD if at is None else k_nLD[at]).float()
        logits_NQC[lane, :, :reach] = torch.bmm(q_NQD[lane], k_nLD.transpose(1, 2))
    return softmax_over_visible(logits_NQC, buffers.length_S[lanes.index_N], q_NGTD.shape[2])


def attend_to_slabs(
    attend: Attend,
    q_SGTD: Tensor,
    buffers: Buffers,
    lengths: Sequence[int],
    scaling: float,
    wanted: Sequence[bool] | None = None,
) -> Tensor:
    """Attend with the T newest tokens of every segment: [S, G, T, D], in the order of the arena.

    Args:
        lengths: live slots on the host, the new tokens included.
        wanted: True for segments whose output is read; None for all. The other outputs are undefined.
    """
    _, group, tokens, _ = q_SGTD.shape
    q_S1QD = q_SGTD.flatten(1, 2)[:, None]  # Q = G x T, G-major
    if tokens > 1 or buffers.bias_R is None:
        slot = torch.arange(max(lengths), device=q_SGTD.device)
        # Token t of T sees the slots up to itself: slot < length - T + t + 1.
        visible_ST = buffers.length_S[:, None] + torch.arange(1 - tokens, 1, device=q_SGTD.device)
    outs = []
    for slab in buffers.slabs:
        all_of = slice(slab.begin, slab.end)
        some = [i for i in range(slab.begin, slab.end) if wanted[i]] if wanted is not None else []
        if wanted is not None and not some:
            outs.append(torch.zeros_like(q_S1QD[all_of]))
            continue
        few = wanted is not None and 2 * len(some) <= slab.end - slab.begin
        used = [lengths[i] for i in some] if few else lengths[all_of]
        longest, shortest = max(used), min(used)
        k, v = slab.view(buffers.k_RD, longest), slab.view(buffers.v_RD, longest)
        mask = None
        if tokens == 1 and shortest < longest and buffers.bias_R is not None:
            mask = slab.bias(buffers.bias_R, longest)
        elif tokens > 1 or shortest < longest:
            mask = (slot[:longest] < visible_ST[all_of, :, None])[:, None].repeat(1, 1, group, 1)
        if few:  # copying a few costs less than attending to all
            at = torch.tensor(some, device=q_SGTD.device)
            near = at - slab.begin
            out = torch.zeros_like(q_S1QD[all_of])
            out[near] = attend(q_S1QD[at], k[near], v[near], None if mask is None else mask[near], scaling)
        else:
            out = attend(q_S1QD[all_of], k, v, mask, scaling)
        outs.append(out)
    out_SGTD: Tensor = torch.cat(outs)[:, 0].unflatten(1, (group, tokens))
    return out_SGTD
