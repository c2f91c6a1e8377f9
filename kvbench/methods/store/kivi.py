"""Quantised keys and values: KIVI.

Shape suffixes: N tokens, D head dimension, G tokens (keys) or channels (values) per quantisation group. Between N
and D there may be further dimensions, such as heads: N always leads.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvbench.methods.base import Encoded, Store
from kvbench.methods.fields import InvalidField
from kvbench.methods.store.packing import pack, quantize, unpack


@dataclass(frozen=True)
class Kivi(Store):
    """Keys quantised per channel over groups of tokens, values per token over groups of channels.

    KIVI (Liu et al. 2024, arXiv 2402.02750). The newest keys stay in full precision until `residual` of them can be
    quantised at once; the newest `residual` values always do. Scale and minimum are held in the model's dtype.

    Args:
        bits: 2, 4 or 8.
        group_size: tokens per key group and channels per value group.
        residual: full-precision tokens; a multiple of `group_size`.
    """

    bits: int = 2
    group_size: int = 32
    residual: int = 128

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise InvalidField("bits", self.bits, "must be 2, 4 or 8")
        if self.group_size < 1 or self.group_size % (8 // self.bits):
            raise InvalidField("group_size", self.group_size, f"must be a multiple of {8 // self.bits}")
        if self.residual < 1 or self.residual % self.group_size:
            raise InvalidField(
                "residual", self.residual, "must be a multiple of {group_size}", group_size=self.group_size
            )

    def check(self, head_dim: int) -> None:
        """Raise InvalidField if the channels do not divide into groups."""
        if head_dim % self.group_size:
            raise InvalidField("group_size", self.group_size, f"must divide the head dimension {head_dim}")

    def encoded_keys(self, n: int) -> int:
        """Return how many of `n` keys are quantised, the oldest first."""
        return n - n % self.residual

    def encoded_values(self, n: int) -> int:
        """Return how many of `n` values are quantised, the oldest first."""
        return max(0, n - self.residual)

    def encode_keys(self, k_ND: Tensor) -> Encoded:
        """Quantise keys over groups of tokens; N is a multiple of `group_size`."""
        groups = k_ND.unflatten(0, (-1, self.group_size)).movedim(1, -1)  # [N / G, D, G]
        codes, scale, low = quantize(groups, self.bits)
        return pack(codes, self.bits), scale[..., 0], low[..., 0]

    def encode_values(self, v_ND: Tensor) -> Encoded:
        """Quantise values over groups of channels."""
        codes, scale, low = quantize(v_ND.unflatten(-1, (-1, self.group_size)), self.bits)  # [N, D / G, G]
        return pack(codes, self.bits), scale[..., 0], low[..., 0]

    def decode_keys(self, encoded: Encoded) -> Tensor:
        """Return [N, D] keys."""
        packed, scale, low = encoded
        groups = unpack(packed, self.bits) * scale[..., None] + low[..., None]
        return groups.movedim(-1, 1).flatten(0, 1)

    def decode_values(self, encoded: Encoded) -> Tensor:
        """Return [N, D] values."""
        packed, scale, low = encoded
        return (unpack(packed, self.bits) * scale[..., None] + low[..., None]).flatten(-2)
