"""Rows of numbers with a number of bits for each row, and outliers in full precision, packed into bytes.

A row is codes of D numbers, the places of its outliers (a byte each), and the outliers themselves.

Shape suffixes: N rows, D numbers of a row, M outliers of some rows, L bytes.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.methods.storage import ROW_BYTES, Encoded, Rows


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


def wide(x: Tensor) -> Tensor:
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
