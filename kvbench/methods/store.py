"""Storage parts: how kept tokens are held. They encode and decode; the cache owns the buffers.

Shape suffixes: N tokens, D head dimension, G tokens (keys) or channels (values) per quantisation group. Between N
and D there may be further dimensions, such as heads: N always leads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Encoded = tuple[Tensor, ...]  # every tensor has a leading dimension proportional to N


class Store(Protocol):
    """Older tokens are encoded, the newest stay as they are.

    After every step, of `n` tokens the first `encoded_keys(n)` keys and `encoded_values(n)` values are encoded.
    """

    def check(self, head_dim: int) -> None: ...
    def encoded_keys(self, n: int) -> int: ...
    def encoded_values(self, n: int) -> int: ...
    def encode_keys(self, k_ND: Tensor) -> Encoded: ...
    def encode_values(self, v_ND: Tensor) -> Encoded: ...
    def decode_keys(self, encoded: Encoded) -> Tensor: ...
    def decode_values(self, encoded: Encoded) -> Tensor: ...


def quantize(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric uniform quantisation along the last dimension: codes (uint8), scale and minimum per group.

    x is about codes * scale + minimum. A constant group has scale 0 and all codes 0.
    """
    low = x.amin(-1, keepdim=True)
    scale = (x.amax(-1, keepdim=True) - low) / (2**bits - 1)
    steps = (x - low) / torch.where(scale > 0, scale, torch.ones_like(scale))
    return steps.round().clamp(0, 2**bits - 1).to(torch.uint8), scale, low


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes of 2, 4 or 8 bits along the last dimension, first code in the lowest bits."""
    per_byte = 8 // bits
    parts = codes.unflatten(-1, (-1, per_byte))
    packed: Tensor = parts[..., 0].clone()
    for index in range(1, per_byte):
        packed |= parts[..., index] << (bits * index)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Invert `pack`."""
    parts = [(packed >> (bits * index)) & (2**bits - 1) for index in range(8 // bits)]
    return torch.stack(parts, -1).flatten(-2)


@dataclass(frozen=True)
class Kivi:
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
            raise ValueError(f"method.bits={self.bits}: must be 2, 4 or 8")
        if self.group_size < 1 or self.group_size % (8 // self.bits):
            raise ValueError(f"method.group_size={self.group_size}: must be a multiple of {8 // self.bits}")
        if self.residual < 1 or self.residual % self.group_size:
            raise ValueError(
                f"method.residual={self.residual}: must be a multiple of method.group_size={self.group_size}"
            )

    def check(self, head_dim: int) -> None:
        """Raise ValueError if channels do not divide into groups."""
        if head_dim % self.group_size:
            raise ValueError(f"method.group_size={self.group_size}: must divide the head dimension {head_dim}")

    def encoded_keys(self, n: int) -> int:
        return n - n % self.residual

    def encoded_values(self, n: int) -> int:
        return max(0, n - self.residual)

    def encode_keys(self, k_ND: Tensor) -> Encoded:
        groups = k_ND.unflatten(0, (-1, self.group_size)).movedim(1, -1)  # [N / G, D, G]
        codes, scale, low = quantize(groups, self.bits)
        return pack(codes, self.bits), scale[..., 0], low[..., 0]

    def encode_values(self, v_ND: Tensor) -> Encoded:
        codes, scale, low = quantize(v_ND.unflatten(-1, (-1, self.group_size)), self.bits)  # [N, D / G, G]
        return pack(codes, self.bits), scale[..., 0], low[..., 0]

    def decode_keys(self, encoded: Encoded) -> Tensor:
        packed, scale, low = encoded
        groups = unpack(packed, self.bits) * scale[..., None] + low[..., None]
        return groups.movedim(-1, 1).flatten(0, 1)

    def decode_values(self, encoded: Encoded) -> Tensor:
        packed, scale, low = encoded
        return (unpack(packed, self.bits) * scale[..., None] + low[..., None]).flatten(-2)
