"""Values and keys of tokens that leave, added to those of tokens that stay.

Shape suffixes: B rows, U KV heads, N tokens that leave, M tokens that take over something, R slots of the arena,
D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.methods.sharing import Leaving, Shares
from kvbench_kernels.backends import Buffers

AT_ONCE = 2**26  # numbers that are added at once


def hand_on(shares: Shares, leaving: Leaving, buffers: Buffers, start_BU: Tensor) -> None:
    """Add shares of the tokens that leave to the tokens that stay.

    Sums are made in the order of the positions of the tokens that leave; on a GPU, if several leave a head at once,
    their order is not fixed.

    Args:
        start_BU: the first slot of each head.
    """
    due_BUN1 = leaving.due_BUN[..., None]
    rows, heads, tokens, others = shares.into_BUNM.shape
    together = max(1, AT_ONCE // (rows * heads * others * buffers.v_RD.shape[1]))
    for x_RD, share_BUNM in ((buffers.v_RD, shares.value_BUNM), (buffers.k_RD, shares.key_BUNM)):
        if share_BUNM is None:
            continue
        share_BUNM = share_BUNM.masked_fill(~due_BUN1, 0)
        # a slot without a share must be one of the head: nothing is added there
        into_BUNM = (start_BU[..., None, None] + torch.where(share_BUNM == 0, 0, shares.into_BUNM)).long()
        source_BUN = start_BU[..., None] + torch.where(leaving.due_BUN, leaving.column_BUN, 0)
        for first in range(0, tokens, together):
            part = slice(first, first + together)
            leaving_XD = x_RD[source_BUN[:, :, part].flatten()].float()
            added_XMD = share_BUNM[:, :, part].flatten(0, 2)[..., None] * leaving_XD[:, None]
            x_RD.index_add_(0, into_BUNM[:, :, part].flatten(), added_XMD.flatten(0, 1).to(x_RD.dtype))
