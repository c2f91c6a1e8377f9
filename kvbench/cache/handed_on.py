"""Values and keys of tokens that leave, added to those of tokens that stay.

Shape suffixes: B rows, U KV heads, N tokens that leave a head, X those of all heads, M tokens that take over something,
R slots of the arena, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.methods.policy_answers import strangers
from kvbench.methods.sharing import Leaving, Shares
from kvbench_kernels.backends import NOT_OF_THE_HEAD, Buffers
from kvbench_kernels.ops.host_rows import HostRows

AT_ONCE = 2**24  # numbers that are added at once


def hand_on(shares: Shares, leaving: Leaving, buffers: Buffers, start_BU: Tensor, host: HostRows | None = None) -> None:
    """Add shares of the tokens that leave to the tokens that stay.

    The tokens that leave a head are added in the order of their positions; on a GPU, if there are several, in no fixed
    order. If at most one leaves, this is work for the device alone.

    Args:
        start_BU: the first slot of each head.
        host: the functions that write rows on a CPU; None if torch does it.
    """
    if host is not None and leaving.due_BUN.shape[2] == 1 and buffers.k_RD.dtype == torch.float32:
        column_BU, due_BU, into_BUM = leaving.column_BUN[..., 0], leaving.due_BUN[..., 0], shares.into_BUNM[:, :, 0]
        for x_RD, share_BUNM in ((buffers.v_RD, shares.value_BUNM), (buffers.k_RD, shares.key_BUNM)):
            if share_BUNM is not None:
                host.hand_on(x_RD, start_BU, column_BU, due_BU, into_BUM, share_BUNM[:, :, 0])
        return
    buffers.status.masked_fill_(strangers(shares, leaving), NOT_OF_THE_HEAD)
    source_X = (start_BU[..., None] + torch.where(leaving.due_BUN, leaving.column_BUN, 0)).flatten()
    column_BUNM = shares.into_BUNM.clamp(0, leaving.stays_BUC.shape[2] - 1)
    for x_RD, share_BUNM in ((buffers.v_RD, shares.value_BUNM), (buffers.k_RD, shares.key_BUNM)):
        if share_BUNM is None:
            continue
        share_BUNM = share_BUNM.masked_fill(~leaving.due_BUN[..., None], 0)
        # where nothing is added, the slot must be one of the head
        into_BUNM = start_BU[..., None, None] + torch.where(share_BUNM == 0, 0, column_BUNM)
        share_XM, into_XM = share_BUNM.flatten(0, 2), into_BUNM.flatten(0, 2)
        if share_BUNM.shape[2] == 1:
            _add(x_RD, source_X, share_XM, into_XM)
            continue
        adds_X = (share_XM != 0).any(1).nonzero().flatten()
        for part_X in adds_X.split(max(1, AT_ONCE // (share_XM.shape[1] * x_RD.shape[1]))):
            _add(x_RD, source_X[part_X], share_XM[part_X], into_XM[part_X])


def _add(x_RD: Tensor, source_X: Tensor, share_XM: Tensor, into_XM: Tensor) -> None:
    added_XMD = share_XM[..., None] * x_RD[source_X].float()[:, None]
    x_RD.index_add_(0, into_XM.flatten(), added_XMD.flatten(0, 1).to(x_RD.dtype))
