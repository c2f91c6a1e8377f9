"""Uniform quantisation with a number of bits for each row, and outliers in full precision: packed rows of bytes.

A row is codes of D numbers, the places of its outliers (a byte each), and the outliers themselves.

Shape suffixes: N rows, D numbers of a row, M outliers of some rows, L bytes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.methods.context import LayerContext
from kvbench.methods.fields import InvalidField
from kvbench.methods.storage import ROW_BYTES, Encoded, Half, Rows, Side, Store

_LEVELS = [(1e3, 10 ** (n / 57 - 9)) for n in range(513)] + [(10 ** (3 - n / 102), 1.0) for n in range(1, 1024)]


@dataclass(frozen=True)
class MixedBits(Half, Protocol):
    """Single tokens whose largest error stays below a limit of their own.

    Args:
        least, most: bits of a code.
        outliers: share of the numbers of a token that stay as they are.
        symmetric: True for codes around 0, False for codes around the mean.
        generated: "plain" leaves tokens that follow the prompt as they are, "encoded" gives them `most` bits.
        last: number of last queries; the tokens that fewer queries have seen get `most` bits.
        level: "head" quantises a token in each KV head by itself; "layer" gives all of its heads the same outlier
            thresholds, bits, scale and mean.
    """

    least: int
    most: int
    outliers: float
    symmetric: bool
    generated: str
    last: int
    level: str

    def limits(self, ctx: LayerContext) -> Tensor:
        """Return the largest error [U, T] of each token of the prompt; 0 for `most` bits."""
        ...

    def all_limits(self, ctx: LayerContext) -> Tensor:
        """Return the limits, 0 for the last tokens."""
        limit_UT = self.limits(ctx)
        limit_UT[:, max(0, ctx.num_tokens - self.last + 1) :] = 0
        return limit_UT

    @property
    def varies(self) -> bool:
        """True: tokens have bits of their own."""
        return True

    def check(self, head_dim: int) -> None:
        """Raise InvalidField if the place of an outlier does not fit into a byte, or if no number would be left."""
        if self.outliers and (head_dim > 256 or math.floor((1 - self.outliers / 2) * head_dim) < 2):
            raise InvalidField("outliers", self.outliers, f"takes a head dimension of 4 to 256, not {head_dim}; give 0")

    def encoded(self, n: int, kept: int) -> int:
        """Return how many tokens are encoded: those of the prompt, or all."""
        return n if self.generated == "encoded" else min(n, kept)

    def prepare(self, ctx: LayerContext, keep_UT: Tensor, x_UTD: Tensor) -> Side:
        """Return the limit of each token [U, T]; at level layer [U, T, 5], with the `Unit` of each."""
        limit_UT = self.all_limits(ctx)
        if self.level == "head":
            return Side(token=limit_UT)
        unit_4T = torch.stack(self._unit(x_UTD))
        return Side(token=torch.stack([limit_UT, *(x_T.expand_as(limit_UT) for x_T in unit_4T)], -1))

    def encode(self, x_NBD: Tensor, head_N: Tensor | None, token_NB: Tensor | None) -> Encoded:
        """Return scale and mean, bits and packed rows of tokens."""
        parts, bits_N = self._choose(x_NBD[:, 0], None if token_NB is None else token_NB[:, 0])
        return encode(x_NBD[:, 0], parts, bits_N, self.symmetric)

    def decode(self, encoded: Encoded, head_N: Tensor | None, dim: int) -> Tensor:
        """Return [N, 1, D] tokens."""
        return decode(encoded, dim)[:, None]

    def block_bytes(self, dim: int, dtype: torch.dtype) -> int:
        """Return the bytes of a token of `most` bits without equal outliers."""
        return self._token_bytes(self.most, dim, dtype)

    def fewest_bytes(self, n: int, dim: int, dtype: torch.dtype) -> int:
        """Return the bytes of tokens with `least` bits, but for the last. Numbers that differ take a bit at least."""
        last, least = min(n, self.last - 1), min(self.most, max(1, self.least))
        if self.level == "layer":  # all outliers may be in other heads
            fixed = fixed_bytes(dtype.itemsize, self.symmetric)
            return n * fixed + (last * (dim * self.most + 7) + (n - last) * (dim * least + 7)) // 8
        return last * self.block_bytes(dim, dtype) + (n - last) * self._token_bytes(least, dim, dtype)

    def _token_bytes(self, bits: int, dim: int, dtype: torch.dtype) -> int:
        count = 0 if not self.outliers else dim - math.floor((1 - self.outliers / 2) * dim)
        count += math.ceil(self.outliers / 2 * dim)
        codes = -(-dim * bits // 8) + count * (1 + dtype.itemsize)
        return fixed_bytes(dtype.itemsize, self.symmetric) + codes

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of what `prepare` returns for a token."""
        return torch.promote_types(dtype, torch.float32).itemsize * (1 if self.level == "head" else 5)

    def sizes(self, ctx: LayerContext, x_UTD: Tensor) -> Tensor:
        """Return the bytes [U, T] of each token."""
        range_N, count_N = self._spread(ctx, x_UTD)
        bits_N = bits_of(range_N, self.all_limits(ctx).flatten(), self.least, self.most)
        rows_N = row_bytes(bits_N, x_UTD.shape[-1], count_N, x_UTD.itemsize)
        return (rows_N + fixed_bytes(x_UTD.itemsize, self.symmetric)).view(x_UTD.shape[:2])

    def _spread(self, ctx: LayerContext, x_UTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the range and the outliers of each token. A search asks for those of a layer with many limits."""

        def compute() -> tuple[Tensor, Tensor]:
            work_ND = _wide(x_UTD).flatten(0, 1)
            if self.level == "head":
                parts = split(work_ND, self.outliers, self.symmetric)
            else:
                parts = self._unit(x_UTD).split(work_ND, repeats=len(x_UTD))
            return parts.range_N, parts.outlier_ND.sum(1)

        own = [name for name, x in (("keys", ctx.k), ("values", ctx.v)) if x is x_UTD]
        return ctx.memo(("spread", *own, self.outliers, self.symmetric, self.level), compute) if own else compute()

    def _choose(self, x_ND: Tensor, limit_N: Tensor | None) -> tuple[Split, Tensor]:
        """Return outliers and bits of tokens."""
        if limit_N is not None and limit_N.dim() == 2:
            limit_N, *unit = limit_N.unbind(1)
            parts = Unit(*unit).split(_wide(x_ND))
        else:
            parts = split(_wide(x_ND), self.outliers, self.symmetric)
        limit_N = torch.zeros_like(parts.mean_N) if limit_N is None else limit_N
        return parts, bits_of(parts.range_N, limit_N, self.least, self.most)

    def _unit(self, x_UTD: Tensor) -> Unit:
        """Return the unit of each token, over all of its heads."""
        return unit(_wide(x_UTD).transpose(0, 1).flatten(1), self.outliers, self.symmetric)


@dataclass(frozen=True)
class StoreByError(Store, Protocol):
    """A store with a target error, and a norm of queries that limits the error of keys; see `QaqHalf`.

    A budget in bytes chooses the error. The limit of keys grows with the logarithm of the error only, so an error of
    1000 does not lead to the fewest bits. From there on the norm becomes smaller.
    """

    error: float
    q_norm: float

    def family(self, dim: int) -> Sequence[Self]:
        """Return the forms from an error that leads to the fewest bits to one that leads to the most."""
        part: Any = self
        return [replace(part, error=error, q_norm=max(1e-9, self.q_norm * share)) for error, share in _LEVELS]


@dataclass(frozen=True)
class LargestAttention:
    """The largest attention that one of the last `queries` queries pays to a token."""

    queries: int

    def summary(self, ctx: LayerContext) -> Tensor:
        """Return it for every token, [U, T]."""
        return ctx.window_attention(min(self.queries, ctx.num_tokens)).amax((1, 2))


class Split(NamedTuple):
    """The outliers of rows, and what the other numbers of each row are quantised by.

    Attributes:
        outlier_ND: True for outliers.
        mean_N: mean of the others, to which code 0 belongs; 0 if symmetric.
        range_N: distance from their least to their largest; twice the largest absolute number if symmetric.
    """

    outlier_ND: Tensor
    mean_N: Tensor
    range_N: Tensor


class Unit(NamedTuple):
    """The thresholds, means and ranges by which rows are quantised.

    Attributes:
        low_N, high_N: numbers up to `low_N`, or above `high_N`, are outliers.
        mean_N, range_N: as of `Split`.
    """

    low_N: Tensor
    high_N: Tensor
    mean_N: Tensor
    range_N: Tensor

    def split(self, x_ND: Tensor, repeats: int = 1) -> Split:
        """Return the outliers of rows. With `repeats`, as many rows after each other share the units in turn."""
        low_N, high_N, mean_N, range_N = (x_N.repeat(repeats) for x_N in self)
        return Split((x_ND <= low_N[:, None]) | (x_ND > high_N[:, None]), mean_N, range_N)


def split(x_ND: Tensor, outliers: float, symmetric: bool) -> Split:
    """Return the share `outliers` of the numbers of each row, half at either end, and the range of the others."""
    return unit(x_ND, outliers, symmetric).split(x_ND)


def unit(x_ND: Tensor, outliers: float, symmetric: bool) -> Unit:
    """Return the thresholds, mean and range of each row if the share `outliers` of its numbers stay as they are.

    Numbers equal to the lowest threshold are outliers as well. Rows of equal numbers have none.
    """
    dim = x_ND.shape[1]
    low_N, high_N = x_ND.new_full((len(x_ND),), -torch.inf), x_ND.new_full((len(x_ND),), torch.inf)
    outlier_ND = torch.zeros_like(x_ND, dtype=torch.bool)
    if outliers:
        sorted_ND = x_ND.sort(1).values
        first_N = sorted_ND[:, math.ceil(outliers / 2 * dim) - 1]
        last_N = sorted_ND[:, math.floor((1 - outliers / 2) * dim) - 1]
        outlier_ND = (x_ND <= first_N[:, None]) | (x_ND > last_N[:, None])
        every_N = outlier_ND.all(1)
        low_N, high_N = low_N.where(every_N, first_N), high_N.where(every_N, last_N)
        outlier_ND &= ~every_N[:, None]
    if symmetric:
        most_N = x_ND.abs().masked_fill(outlier_ND, 0).amax(1)
        return Unit(low_N, high_N, torch.zeros_like(most_N), 2 * most_N)
    mean_N = x_ND.masked_fill(outlier_ND, 0).sum(1) / (~outlier_ND).sum(1)
    upper_N, lower_N = x_ND.masked_fill(outlier_ND, -torch.inf).amax(1), x_ND.masked_fill(outlier_ND, torch.inf).amin(1)
    return Unit(low_N, high_N, mean_N, upper_N - lower_N)


def _wide(x: Tensor) -> Tensor:
    """Return numbers in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def bits_of(range_N: Tensor, limit_N: Tensor, least: int, most: int) -> Tensor:
    """Return the bits with which the largest error of each row stays below its limit; `most` for a limit of 0.

    Rows with numbers that are not finite get `most` bits: the row fails later, alone.
    """
    bits_N = (range_N / (2 * limit_N) + 1).log2().ceil().nan_to_num(nan=most)
    return torch.where(limit_N > 0, bits_N, most).clamp(least, most).long()


def row_bytes(bits_N: Tensor, dim: int, count_N: Tensor, itemsize: int) -> Tensor:
    """Return the bytes of each row; `count_N` are its outliers."""
    return (bits_N * dim + 7) // 8 + count_N * (1 + itemsize)


def fixed_bytes(itemsize: int, symmetric: bool) -> int:
    """Return the bytes that every row takes in addition: scale, mean, number of bits, and what finds it."""
    return (1 if symmetric else 2) * itemsize + 1 + ROW_BYTES


def encode(x_ND: Tensor, parts: Split, bits_N: Tensor, symmetric: bool) -> Encoded:
    """Return scale and mean [N, 2] (the scale alone if symmetric), bits, and the packed rows."""
    work_ND = x_ND.to(parts.mean_N.dtype)
    scale_N = parts.range_N / 2**bits_N
    steps_ND = (work_ND - parts.mean_N[:, None]) / torch.where(scale_N > 0, scale_N, 1)[:, None]
    half_N1 = (2**bits_N // 2)[:, None]
    code_ND = torch.minimum(steps_ND.round().long().clamp(-half_N1), half_N1 - 1) + half_N1
    length_N = row_bytes(bits_N, x_ND.shape[1], parts.outlier_ND.sum(1), x_ND.itemsize)
    rows = Rows.joined(torch.zeros(int(length_N.sum()), dtype=torch.uint8, device=x_ND.device), length_N)
    for bits in bits_N.unique().tolist():
        at_N = rows.start_N[bits_N == bits]
        packed_NL = pack(code_ND[bits_N == bits], bits)
        rows.data[at_N[:, None] + torch.arange(packed_NL.shape[1], device=at_N.device)] = packed_NL
    row_M, column_M = parts.outlier_ND.nonzero().unbind(1)
    place_M, value_ML = _outlier_places(rows, bits_N, parts.outlier_ND, x_ND.itemsize)
    rows.data[place_M] = column_M.to(torch.uint8)
    rows.data[value_ML] = x_ND[row_M, column_M][:, None].contiguous().view(torch.uint8)
    known = [scale_N] if symmetric else [scale_N, parts.mean_N]
    return torch.stack(known, 1).to(x_ND.dtype), bits_N.to(torch.uint8), rows


def decode(encoded: Encoded, dim: int) -> Tensor:
    """Return the rows [N, D]. A row of 0 bits is its mean."""
    known_N2, bits_N, rows = encoded
    assert isinstance(known_N2, Tensor) and isinstance(bits_N, Tensor) and isinstance(rows, Rows)
    work_N2 = known_N2.to(torch.promote_types(known_N2.dtype, torch.float32))
    code_ND = torch.empty(len(bits_N), dim, dtype=work_N2.dtype, device=bits_N.device)
    codes_N = (bits_N.long() * dim + 7) // 8
    for bits in bits_N.unique().tolist():
        at = (bits_N == bits).nonzero()[:, 0]
        packed_NL = rows.part(at, torch.zeros_like(codes_N), -(-dim * bits // 8))
        code_ND.index_copy_(0, at, unpack(packed_NL, bits, dim).to(code_ND.dtype).sub_(2**bits // 2))
    x_ND = code_ND.mul_(work_N2[:, :1])
    if work_N2.shape[1] > 1:
        x_ND += work_N2[:, 1:]
    x_ND = x_ND.to(known_N2.dtype)
    count_N = (rows.length_N - codes_N) // (1 + known_N2.itemsize)
    for count in filter(None, count_N.unique().tolist()):  # nearly all rows have the same number of outliers
        at = (count_N == count).nonzero()[:, 0]
        own = rows.part(at, codes_N, count * (1 + known_N2.itemsize))
        values = own[:, count:].clone(memory_format=torch.contiguous_format).view(known_N2.dtype)
        x_ND[at[:, None], own[:, :count].long()] = values
    return x_ND


def _outlier_places(rows: Rows, bits_N: Tensor, outlier_ND: Tensor, itemsize: int) -> tuple[Tensor, Tensor]:
    """Return where the place [M] and the bytes [M, itemsize] of each outlier lie."""
    row_M = outlier_ND.nonzero()[:, 0]
    rank_M = (outlier_ND.cumsum(1) - 1)[outlier_ND]
    codes_N = (bits_N * outlier_ND.shape[1] + 7) // 8
    first_M = (rows.start_N + codes_N)[row_M]
    value_M = first_M + outlier_ND.sum(1)[row_M] + rank_M * itemsize
    return first_M + rank_M, value_M[:, None] + torch.arange(itemsize, device=row_M.device)


def pack(codes_ND: Tensor, bits: int) -> Tensor:
    """Pack codes of any number of bits into bytes: [N, ceil(D * bits / 8)], first code and lowest bit first."""
    flat = ((codes_ND[..., None] >> torch.arange(bits, device=codes_ND.device)) & 1).flatten(1)
    flat = F.pad(flat, (0, -flat.shape[1] % 8)).unflatten(1, (-1, 8))
    packed: Tensor = (flat << torch.arange(8, device=codes_ND.device)).sum(-1)
    return packed.to(torch.uint8)


def unpack(packed_NL: Tensor, bits: int, count: int) -> Tensor:
    """Return the `count` codes [N, count] of each row that `pack` has packed."""
    device = packed_NL.device
    if not bits:
        return torch.zeros(len(packed_NL), count, dtype=torch.uint8, device=device)
    if bits in (1, 2, 4, 8):
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=device)
        code_NLP: Tensor = (packed_NL[..., None] >> shifts) & (2**bits - 1)
        return code_NLP.flatten(1)[:, :count]
    if bits < 8:  # `bits` bytes hold 8 codes
        size = torch.int32 if bits < 4 else torch.int64
        byte_NWB = F.pad(packed_NL, (0, -packed_NL.shape[1] % bits)).unflatten(1, (-1, bits)).to(size)
        word_NW = byte_NWB[..., 0]
        for index in range(1, bits):
            word_NW = word_NW | byte_NWB[..., index] << 8 * index
        places = torch.arange(0, 8 * bits, bits, device=device, dtype=size)
        code_NW8: Tensor = (word_NW[..., None] >> places) & (2**bits - 1)
        return code_NW8.flatten(1)[:, :count]
    first_D = torch.arange(count, device=device) * bits
    wide_NL = F.pad(packed_NL, (0, 2)).int()  # a code of up to 16 bits lies in at most three bytes
    parts = (wide_NL.index_select(1, first_D // 8 + index) << 8 * index for index in range(3))
    word_ND = functools.reduce(torch.bitwise_or, parts)
    code_ND: Tensor = (word_ND >> (first_D % 8).int()) & (2**bits - 1)
    return code_ND
