"""ThinK: keys without their least used channels (Xu et al. 2024, arXiv 2407.21018).

Shape suffixes: U KV heads, T tokens, N blocks, B = 1 token of a block, D head dimension, C channels that stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.context import LayerContext
from kvbench.methods.fields import InvalidField, check_at_least, check_between
from kvbench.methods.storage import Encoded, Half, Side, Store


@dataclass(frozen=True)
class ThinkKeys(Half):
    """The older keys of a prompt, without the channels that say least about the prompt's last queries."""

    ratio: float
    queries: int
    recent: int

    def check(self, head_dim: int) -> None:
        if int(self.ratio * head_dim) < 1:
            raise InvalidField("ratio", self.ratio, f"drops none of {head_dim} channels")

    def encoded(self, n: int, kept: int) -> int:
        return max(0, kept - self.recent)

    def summary(self, ctx: LayerContext) -> Tensor:
        squares_HD = _squares(ctx.q[:, -self.queries :]).mean(1)
        return squares_HD.view(ctx.num_kv_heads, ctx.group, -1).mean(1)

    def prepare(self, ctx: LayerContext, keep_UT: Tensor, x_UTD: Tensor) -> Side:
        queries_UD = ctx.summary(self)
        assert queries_UD is not None
        weight_UD = queries_UD * (_squares(x_UTD) * keep_UT[..., None]).sum(1) / keep_UT.sum(1, True).clamp_min(1)
        count = x_UTD.shape[-1] - int(self.ratio * x_UTD.shape[-1])
        best_UC = weight_UD.argsort(dim=-1, descending=True, stable=True)[:, :count]
        return Side(head=best_UC.sort(-1).values.to(torch.int16))

    def encode(self, x_NBD: Tensor, head_N: Tensor | None, token_NB: Tensor | None) -> Encoded:
        assert head_N is not None
        return (x_NBD.gather(2, head_N.long()[:, None]),)

    def decode(self, encoded: Encoded, head_N: Tensor | None, dim: int) -> Tensor:
        assert head_N is not None
        return encoded[0].new_zeros(*encoded[0].shape[:2], dim).scatter_(2, head_N.long()[:, None], encoded[0])


@dataclass(frozen=True)
class Think(Store):
    """Keys with a share of their channels, chosen for each KV head; values as they are.

    Args:
        ratio: share of the channels that are dropped.
        queries: last queries of the prompt that decide which channels stay.
        recent: newest kept tokens of the prompt whose keys stay whole, as the keys of generated tokens do.
    """

    ratio: float = 0.4
    queries: int = 32
    recent: int = 32

    def __post_init__(self) -> None:
        check_between(self, "ratio", 0.0, 0.99)
        check_at_least(self, "queries", 1)
        check_at_least(self, "recent", 0)

    @property
    def keys(self) -> Half:
        """The form of keys."""
        return ThinkKeys(self.ratio, self.queries, self.recent)


def _squares(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32)).square()
