"""The contract of storage parts: the form in which kept tokens are held.

Shape suffixes: N blocks of any rows and KV heads, B tokens of a block, U KV heads, T tokens of the compressed span,
D head dimension, C channels that stay.

A part owns no state. The cache owns flat buffers of encoded blocks, and hands over as many blocks at a time as suit
the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from kvbench.methods.base import Part
from kvbench.methods.context import LayerContext
from kvbench.methods.fields import InvalidField

ROW_BYTES = 6  # that the place and the length of a row of `Rows` take in a cache
NUMBER_BYTES = 27
"""Bytes that a token takes in a cache which may drop single tokens of a store, in addition to its key and value.

It has a number, held as its key and as its value (8); the number leads to its places in both halves (8), its age (4)
and its KV head (4); a flag says that the number is in use, and one for each half that its place is (3).
"""


@dataclass(frozen=True)
class Rows:
    """Rows of bytes that differ in length.

    Attributes:
        data: uint8, the bytes of all rows, and perhaps of others.
        length_N: bytes of each row.
        start_N: first byte of each row.
    """

    data: Tensor
    length_N: Tensor
    start_N: Tensor

    @classmethod
    def joined(cls, data: Tensor, length_N: Tensor) -> Rows:
        """Return rows that lie one after the other."""
        return cls(data, length_N, length_N.cumsum(0) - length_N)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, with those that find a row."""
        return int(self.length_N.sum()) + ROW_BYTES * len(self.length_N)

    def part(self, rows: Tensor, first_N: Tensor, count: int) -> Tensor:
        """Return `count` bytes of some rows, [rows, count]; `first_N` is the place in each row at which they begin."""
        windows = self.data.as_strided((max(0, len(self.data) - count + 1), count), (1, 1))  # one begins at every byte
        return windows.index_select(0, (self.start_N + first_N)[rows])


Encoded = tuple[Tensor | Rows, ...]
"""Encoded blocks: every tensor has one leading row per block; `Rows` where blocks differ in size."""


def tensors(encoded: Sequence[object]) -> tuple[Tensor, ...]:
    """Return encoded blocks of one size, or their buffers, as the tensors that they are."""
    return tuple(x for x in encoded if isinstance(x, Tensor))


class Side(NamedTuple):
    """Facts about a prompt that encoding needs.

    Attributes:
        head: [U, ...] per KV head; None if nothing.
        token: [U, T, ...] per token of the span; None if nothing. For generated tokens it is 0.
    """

    head: Tensor | None = None
    token: Tensor | None = None


class Half(Part, Protocol):
    """The form in which the keys, or the values, of a method are held.

    Of a head's tokens the oldest are encoded, in blocks of `block` tokens. The others stay as they are.
    """

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return 1

    @property
    def kind(self) -> str | None:
        """The name of a layout that a kernel attends to as it is; None if it must be decoded first."""
        return None

    def __hash__(self) -> int:
        """Return a hash that equal parts share; a frozen dataclass replaces it by one of its fields."""
        return hash(type(self))

    def check(self, head_dim: int) -> None:
        """Raise InvalidField if tokens of this head dimension cannot be encoded."""
        return None

    def encoded(self, n: int, kept: int) -> int:
        """Return how many of a head's `n` tokens are encoded, the oldest first: a multiple of `block`.

        Args:
            n: tokens of the head; more of them never means that fewer are encoded.
            kept: how many of them were kept of the prompt. The others came later.
        """
        ...

    def summary(self, ctx: LayerContext) -> Tensor | None:
        """Return what `prepare` reads of the queries, as `ctx.summary(self)`; None if nothing.

        It is computed while the layer still has its queries. A layer that waits for the others frees them.
        """
        return None

    def prepare(self, ctx: LayerContext, keep_UT: Tensor, x_UTD: Tensor) -> Side:
        """Return what encoding needs to know of a layer of the prompt, of whose keys or values `keep_UT` stays."""
        return Side()

    def encode(self, x_NBD: Tensor, head_N: Tensor | None, token_NB: Tensor | None) -> Encoded:
        """Encode blocks of tokens; `head_N` and `token_NB` are what `prepare` returned for them."""
        ...

    def decode(self, encoded: Encoded, head_N: Tensor | None, dim: int) -> Tensor:
        """Return [N, B, D] tokens from their encoded form."""
        ...

    @property
    def multiplies(self) -> bool:
        """True if `multiply` gives the products of queries and keys without decoding them. Blocks have one token."""
        return False

    def multiply(self, q_NQD: Tensor, encoded: Sequence[Tensor], head_N: Tensor | None) -> Tensor:
        """Return q k^T, [N, Q, M], of N heads with M encoded keys each; every tensor of `encoded` is [N, M, ...]."""
        raise TypeError(f"{type(self).__name__} must be decoded first")

    def block_bytes(self, dim: int, dtype: torch.dtype) -> int:
        """Return the bytes of an encoded block; of blocks that differ, the most."""
        return self.nbytes(self.encode(torch.zeros(1, self.block, dim, dtype=dtype), None, None))

    def fewest_bytes(self, n: int, dim: int, dtype: torch.dtype) -> int:
        """Return the fewest bytes that `n` encoded tokens of a prompt take, whatever the tokens are."""
        return n // self.block * self.block_bytes(dim, dtype)

    @property
    def varies(self) -> bool:
        """True if the bytes of a block depend on its tokens. Its blocks then have one token, and `sizes` knows them."""
        return False

    def sizes(self, ctx: LayerContext, x_UTD: Tensor) -> Tensor:
        """Return the bytes [U, T] of each token's block, if they differ."""
        raise TypeError(f"{type(self).__name__} encodes all blocks alike")

    def side_bytes(self, dim: int) -> int:
        """Return the bytes of what `prepare` returns for one KV head."""
        return 0

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of what `prepare` returns for one token. For the memory estimate alone."""
        return 0

    def nbytes(self, encoded: Encoded) -> int:
        """Return the bytes of encoded blocks as published: of codes of mixed widths, what they take if packed."""
        return sum(x.nbytes for x in encoded)


class ChannelHalf(Half, Protocol):
    """A form that drops the share `ratio` of a head's channels, those with the least `weights`. They come back as 0."""

    ratio: float

    def weights(self, ctx: LayerContext, keep_UT: Tensor, x_UTD: Tensor) -> Tensor:
        """Return what the channels of each head are worth, [U, D]; arguments as of `prepare`."""
        ...

    def check(self, head_dim: int) -> None:
        """Raise InvalidField if no channel of this head dimension would be dropped."""
        if int(self.ratio * head_dim) < 1:
            raise InvalidField("ratio", self.ratio, f"drops none of {head_dim} channels")

    def prepare(self, ctx: LayerContext, keep_UT: Tensor, x_UTD: Tensor) -> Side:
        """Return the channels that stay, as indices [U, C]."""
        best_UD = self.weights(ctx, keep_UT, x_UTD).argsort(dim=-1, descending=True, stable=True)
        return Side(head=best_UD[:, : self.stay(x_UTD.shape[-1])].sort(-1).values.to(torch.int16))

    def block_bytes(self, dim: int, dtype: torch.dtype) -> int:
        """Return the bytes of the channels of a block that stay."""
        return self.block * self.stay(dim) * dtype.itemsize

    def side_bytes(self, dim: int) -> int:
        """Return the bytes of the indices of the channels that stay."""
        return self.stay(dim) * torch.int16.itemsize

    def stay(self, dim: int) -> int:
        """Return how many channels stay."""
        return dim - int(self.ratio * dim)

    @property
    def multiplies(self) -> bool:
        """True: the channels that stay are multiplied with those of the query."""
        return True

    def multiply(self, q_NQD: Tensor, encoded: Sequence[Tensor], head_N: Tensor | None) -> Tensor:
        """Return the products over the channels that stay."""
        assert head_N is not None
        channel_NQC = head_N.long()[:, None].expand(-1, q_NQD.shape[1], -1)
        return q_NQD.gather(2, channel_NQC) @ encoded[0][:, :, 0].transpose(1, 2)

    def encode(self, x_NBD: Tensor, head_N: Tensor | None, token_NB: Tensor | None) -> Encoded:
        """Return the channels that stay."""
        assert head_N is not None
        return (x_NBD.gather(2, head_N.long()[:, None].expand(-1, x_NBD.shape[1], -1)),)

    def decode(self, encoded: Encoded, head_N: Tensor | None, dim: int) -> Tensor:
        """Return [N, B, D] tokens with 0 in the other channels."""
        assert head_N is not None
        (x_NBC,) = tensors(encoded)
        channel_NBC = head_N.long()[:, None].expand(-1, x_NBC.shape[1], -1)
        return x_NBC.new_zeros(*x_NBC.shape[:2], dim).scatter_(2, channel_NBC, x_NBC)


@runtime_checkable
class Store(Part, Protocol):
    """A form in which kept tokens are held: one part for keys and one for values; None for tokens as they are."""

    def __hash__(self) -> int:
        """Return a hash that equal parts share; a frozen dataclass replaces it by one of its fields."""
        return hash(type(self))

    @property
    def keys(self) -> Half | None:
        """The form of keys."""
        return None

    @property
    def values(self) -> Half | None:
        """The form of values."""
        return None

    @property
    def halves(self) -> tuple[Half | None, Half | None]:
        """The forms of keys and values."""
        return self.keys, self.values

    @property
    def needs(self) -> frozenset[str]:
        """The fields of the context that one of the halves reads."""
        return frozenset[str]().union(*(half.needs for half in self.halves if half is not None))

    @property
    def queries_at_once(self) -> int:
        """Queries whose attention to all tokens one of the halves holds at once."""
        return max((half.queries_at_once for half in self.halves if half is not None), default=0)

    def check(self, head_dim: int) -> None:
        """Raise InvalidField if keys and values of this head dimension cannot be encoded."""
        for half in self.halves:
            if half is not None:
                half.check(head_dim)

    @property
    def varies(self) -> bool:
        """True if the bytes of a block depend on its tokens."""
        return any(half is not None and half.varies for half in self.halves)

    def family(self, dim: int) -> Sequence[Self]:
        """Return the forms that a budget in bytes chooses from where every token stays, the smallest first.

        Each takes more bytes than the one before, or about as many. A form reads no queries that this one does not read
        in `summarise`, so that it can be chosen when the queries are gone.

        Args:
            dim: head dimension.
        """
        return ()

    @property
    def has_family(self) -> bool:
        """True if a budget in bytes may choose the form."""
        return type(self).family is not Store.family

    def leaving(self, tokens: int) -> Self:
        """Return the form that leaves this many more of the newest tokens as they are; itself if it has none."""
        return self

    def summarise(self, ctx: LayerContext) -> None:
        """Compute what both halves read of the queries."""
        for half in self.halves:
            if half is not None:
                ctx.summary(half)

    def prepare(self, ctx: LayerContext, keep_UT: Tensor, k_UTD: Tensor, v_UTD: Tensor) -> Sequence[Side]:
        """Return what encoding the keys, and the values, needs to know of a layer of the prompt."""
        return [
            Side() if half is None else half.prepare(ctx, keep_UT, x_UTD)
            for half, x_UTD in zip(self.halves, (k_UTD, v_UTD), strict=True)
        ]
