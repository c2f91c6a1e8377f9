"""KIVI: keys quantised per channel, values per token (Liu et al. 2024, arXiv 2402.02750)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from kvbench.methods.fields import InvalidField
from kvbench.methods.storage import ChannelHalf, Half, Store
from kvbench.methods.store.affine import PerChannel, PerToken
from kvbench.methods.store.thinned import ThinnedHalf


@dataclass(frozen=True)
class Kivi(Store):
    """Keys quantised per channel over groups of tokens, values per token over groups of channels.

    The newest keys stay in full precision until `residual` of them can be quantised at once; the newest `residual`
    values always do. Scale and minimum are held in the model's dtype.

    Args:
        bits: 2, 4 or 8.
        group_size: tokens per key group and channels per value group.
        residual: full-precision tokens; a multiple of `group_size`.
        extra: further values in full precision.
        channels: drops channels of keys before they are quantised; None for no channels.
    """

    bits: int = 2
    group_size: int = 32
    residual: int = 128
    extra: int = 0
    channels: ChannelHalf | None = None

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise InvalidField("bits", self.bits, "must be 2, 4 or 8")
        if self.group_size < 1 or self.group_size % (8 // self.bits):
            raise InvalidField("group_size", self.group_size, f"must be a multiple of {8 // self.bits}")
        if self.residual < 1 or self.residual % self.group_size:
            others = {"group_size": self.group_size}
            raise InvalidField("residual", self.residual, "must be a multiple of {group_size}", **others)

    @property
    def keys(self) -> Half:
        keys = PerChannel(self.bits, self.group_size, self.residual)
        return keys if self.channels is None else ThinnedHalf(self.channels, keys)

    @property
    def values(self) -> Half:
        return PerToken(self.bits, self.group_size, self.residual + self.extra)

    def family(self, dim: int) -> list[Self]:
        residuals = range(self.group_size, self.residual + 1, self.group_size)
        wider = (bits for bits in (4, 8) if bits > self.bits)
        return [replace(self, residual=n) for n in residuals] + [replace(self, bits=bits) for bits in wider]

    def leaving(self, tokens: int) -> Self:
        return replace(self, extra=tokens)
