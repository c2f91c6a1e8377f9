"""Keys, or values, that lose channels before another form encodes the rest.

Shape suffixes: N blocks, B tokens of a block, U KV heads, T tokens of the compressed span, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.context import LayerContext
from kvbench.methods.storage import ChannelHalf, Encoded, Half, Side, tensors


@dataclass(frozen=True)
class ThinnedHalf(Half):
    """The channels that `channels` leaves, encoded by `rest`, which says which tokens are encoded and reads no prompt.

    As in ThinK's code for KIVI (arXiv 2407.21018), the prompt's encoded keys weigh the channels; without any, all keys.
    """

    channels: ChannelHalf
    rest: Half

    @property
    def block(self) -> int:
        return self.rest.block

    @property
    def kind(self) -> str | None:
        return None if self.rest.kind is None else f"{self.rest.kind}/some"

    def check(self, head_dim: int) -> None:
        self.channels.check(head_dim)
        self.rest.check(self.channels.stay(head_dim))

    def encoded(self, n: int, kept: int) -> int:
        return self.rest.encoded(n, kept)

    def summary(self, ctx: LayerContext) -> Tensor | None:
        return ctx.summary(self.channels)

    def prepare(self, ctx: LayerContext, keep_UT: Tensor, x_UTD: Tensor) -> Side:
        ends = [self.encoded(kept, kept) or kept for kept in keep_UT.sum(1).tolist()]
        old_UT = keep_UT & (keep_UT.cumsum(1) <= torch.tensor(ends, device=keep_UT.device)[:, None])
        return self.channels.prepare(ctx, old_UT, x_UTD)

    def encode(self, x_NBD: Tensor, head_N: Tensor | None, token_NB: Tensor | None) -> Encoded:
        return self.rest.encode(tensors(self.channels.encode(x_NBD, head_N, token_NB))[0], None, None)

    def decode(self, encoded: Encoded, head_N: Tensor | None, dim: int) -> Tensor:
        return self.channels.decode((self.rest.decode(encoded, None, self.channels.stay(dim)),), head_N, dim)

    def block_bytes(self, dim: int, dtype: torch.dtype) -> int:
        return self.rest.block_bytes(self.channels.stay(dim), dtype)

    def side_bytes(self, dim: int) -> int:
        return self.channels.side_bytes(dim)
