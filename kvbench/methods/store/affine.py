"""Asymmetric uniform quantisation of keys or values, in groups of tokens or of channels.

Shape suffixes: N blocks, B tokens of a block, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvbench.methods.fields import InvalidField
from kvbench.methods.storage import Encoded, tensors
from kvbench.methods.store.packing import Groups, decode_groups, encode_groups


@dataclass(frozen=True)
class PerChannel(Groups):
    """Blocks of `group_size` tokens, a scale and a minimum per channel; `residual` tokens are encoded at a time."""

    @property
    def block(self) -> int:
        return self.group_size

    @property
    def kind(self) -> str:
        return f"affine{self.bits}/tokens{self.group_size}"

    def encoded(self, n: int, kept: int) -> int:
        return n - n % self.residual

    def encode(self, x_NBD: Tensor, head_N: Tensor | None, token_NB: Tensor | None) -> Encoded:
        return encode_groups(x_NBD.transpose(1, 2), self.bits)

    def decode(self, encoded: Encoded, head_N: Tensor | None, dim: int) -> Tensor:
        return decode_groups(tensors(encoded), self.bits).transpose(1, 2)


@dataclass(frozen=True)
class PerToken(Groups):
    """Single tokens with a scale and a minimum per group of channels; the newest `residual` stay as they are."""

    @property
    def kind(self) -> str:
        return f"affine{self.bits}/channels{self.group_size}"

    def check(self, head_dim: int) -> None:
        if head_dim % self.group_size:
            raise InvalidField("group_size", self.group_size, f"must divide the head dimension {head_dim}")

    def encoded(self, n: int, kept: int) -> int:
        return max(0, n - self.residual)

    def encode(self, x_NBD: Tensor, head_N: Tensor | None, token_NB: Tensor | None) -> Encoded:
        return encode_groups(x_NBD[:, 0].unflatten(-1, (-1, self.group_size)), self.bits)

    def decode(self, encoded: Encoded, head_N: Tensor | None, dim: int) -> Tensor:
        return decode_groups(tensors(encoded), self.bits).flatten(1)[:, None]
