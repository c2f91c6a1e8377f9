"""Quantisation of single tokens with as many bits as their error needs, and outliers in full precision.

Shape suffixes: N tokens, D numbers of a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from kvbench.methods.context import LayerContext
from kvbench.methods.fields import InvalidField
from kvbench.methods.mixed_rows import Split, Unit, bits_of, decode, encode, fixed_bytes, row_bytes, split, unit, wide
from kvbench.methods.storage import Encoded, Half, Side, Store

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
    def queries_at_once(self) -> int:
        """The last queries, whose attention may weigh the errors: `LargestAttention`."""
        return self.last

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
            work_ND = wide(x_UTD).flatten(0, 1)
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
            parts = Unit(*unit).split(wide(x_ND))
        else:
            parts = split(wide(x_ND), self.outliers, self.symmetric)
        limit_N = torch.zeros_like(parts.mean_N) if limit_N is None else limit_N
        return parts, bits_of(parts.range_N, limit_N, self.least, self.most)

    def _unit(self, x_UTD: Tensor) -> Unit:
        """Return the unit of each token, over all of its heads."""
        return unit(wide(x_UTD).transpose(0, 1).flatten(1), self.outliers, self.symmetric)


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
