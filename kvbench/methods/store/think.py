"""ThinK: keys without their least used channels (Xu et al. 2024, arXiv 2407.21018)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from kvbench.methods.context import LayerContext
from kvbench.methods.fields import check_at_least, check_between
from kvbench.methods.storage import ChannelHalf, Store


@dataclass(frozen=True)
class ThinkKeys(ChannelHalf):
    """The older keys of a prompt, without the channels that say least about the prompt's last queries."""

    ratio: float
    queries: int
    recent: int = 0

    def __post_init__(self) -> None:
        check_between(self, "ratio", 0.0, 0.99)
        for field, least in {"queries": 1, "recent": 0}.items():
            check_at_least(self, field, least)

    def encoded(self, n: int, kept: int) -> int:
        return max(0, kept - self.recent)

    def summary(self, ctx: LayerContext) -> Tensor:
        return ctx.q[:, -self.queries :].to(ctx.dtype).square().mean(1).view(ctx.num_kv_heads, ctx.group, -1).mean(1)

    def weights(self, ctx: LayerContext, keep_UT: Tensor, x_UTD: Tensor) -> Tensor:
        queries_UD = ctx.summary(self)
        assert queries_UD is not None
        squares_UTD = x_UTD.to(ctx.dtype).square() * keep_UT[..., None]
        return queries_UD * squares_UTD.sum(1) / keep_UT.sum(1, True).clamp_min(1)


@dataclass(frozen=True)
class Think(Store):
    """Keys with a share of their channels, chosen for each KV head; values as they are."""

    ratio: float = 0.4  # share of the channels that are dropped
    queries: int = 32  # last queries of the prompt that decide which channels stay
    recent: int = 32  # newest kept tokens of the prompt whose keys stay whole, as those of generated tokens do

    def __post_init__(self) -> None:
        _ = self.keys  # whose fields are checked

    @property
    def keys(self) -> ThinkKeys:
        return ThinkKeys(self.ratio, self.queries, self.recent)

    def family(self, dim: int) -> list[Self]:
        return [replace(self, ratio=min(0.99, n / dim + 1e-12)) for n in range(int(0.99 * dim), 0, -1)]

    def leaving(self, tokens: int) -> Self:
        return replace(self, recent=self.recent + tokens)
