"""Quantised codes and their packing into bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.storage import Half


@dataclass(frozen=True)
class Groups(Half):
    """Codes of `bits` bits with a scale and a minimum per group. About `residual` of the newest tokens stay plain."""

    bits: int
    group_size: int
    residual: int


def encode_groups(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise groups, the last dimension: packed codes, and scale and minimum of each group."""
    codes, scale, low = quantize(x, bits)
    return pack(codes, bits), scale[..., 0], low[..., 0]


def decode_groups(encoded: tuple[Tensor, ...], bits: int) -> Tensor:
    """Invert `encode_groups`, up to the error of the quantisation."""
    packed, scale, low = encoded
    return unpack(packed, bits) * scale[..., None] + low[..., None]


def quantize(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise along the last dimension, asymmetric and uniform: codes (uint8), scale and minimum per group.

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
    mask = 2**bits - 1
    return torch.stack([(packed >> (bits * index)) & mask for index in range(8 // bits)], -1).flatten(-2)
