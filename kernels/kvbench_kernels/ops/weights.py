"""The attention weights of a step for decode policies that read them, and the search for the slot worth least.

Shape suffixes: B rows, U KV heads, N segments, G query heads per KV head, T newest tokens, C slots, R slots of the
arena, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weights(q_NGTD: Tensor, k_RD: Tensor, start_N: Tensor, length_N: Tensor, scaling: float, width: int) -> Tensor:
    """Return the softmax of queries over the live slots of N segments: [N, G, T, width] float32, 0 on empty slots.

    Query t of T sees the first length - T + t + 1 slots.

    Args:
        start_N: first slot of each segment.
        length_N: live slots of each segment, at most `width`.
        width: slots of the result; at least the largest length.
    """
    slot_C = torch.arange(width, device=q_NGTD.device)
    at_NC = (start_N.long()[:, None] + slot_C).clamp(max=len(k_RD) - 1)
    logits_NQC = torch.bmm(q_NGTD.flatten(1, 2).float() * scaling, k_RD[at_NC].float().transpose(1, 2))
    return softmax_over_visible(logits_NQC, length_N, q_NGTD.shape[2])


def softmax_over_visible(logits_NQC: Tensor, length_N: Tensor, tokens: int) -> Tensor:
    """Return the softmax of logits [N, G x T, C] over the slots that each query sees, as [N, G, T, C]. In place."""
    visible_NT = length_N.long()[:, None] + torch.arange(1 - tokens, 1, device=length_N.device)
    hidden_NTC = torch.arange(logits_NQC.shape[2], device=length_N.device) >= visible_NT[..., None]
    logits_NGTC: Tensor = logits_NQC.unflatten(1, (-1, tokens)).masked_fill_(hidden_NTC[:, None], -torch.inf)
    return logits_NGTC.softmax(-1)


def least(worth_BUC: Tensor, pos_BUC: Tensor, length_BU: Tensor) -> Tensor:
    """Return, per head, the live slot that is worth least; of equals, the one whose token came last: [B, U].

    Slots c >= length hold no token. A worth of inf protects a token as long as another one has less.
    """
    live_BUC = torch.arange(worth_BUC.shape[-1], device=worth_BUC.device) < length_BU[..., None]
    worth_BUC = worth_BUC.masked_fill(~live_BUC, torch.inf)
    least_BUC = (worth_BUC == worth_BUC.amin(-1, keepdim=True)) & live_BUC
    return torch.where(least_BUC, pos_BUC, -1).argmax(-1)
