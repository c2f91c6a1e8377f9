"""Dropped tokens are averaged into the nearest kept one: Elastic Cache's merge.

Shape suffixes: U KV heads, T tokens, X tokens of all heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.base import LayerContext, Merge
from kvbench.methods.fields import check_at_least, check_one_of


@dataclass(frozen=True)
class ToNearest(Merge):
    """A kept token becomes the mean of itself and of the dropped tokens that it is the nearest to, by position.

    Elastic Cache (Liu et al. 2024, arXiv 2407.18121). At equal distance the earlier kept token takes a dropped one.

    Args:
        into: "selected": the first `sinks` and the last `window` tokens stay as they are, as in the reference;
            "kept": they take dropped tokens as well.
        sinks, window: tokens at both ends that the selection always keeps.
    """

    into: str = "selected"
    sinks: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        check_one_of(self, "into", ("selected", "kept"))
        check_at_least(self, "sinks", 0)
        check_at_least(self, "window", 0)

    def __call__(self, ctx: LayerContext, keep_UT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values [U, T, D] to store. A head without a token to merge into is not changed."""
        tokens, at_T = ctx.num_tokens, torch.arange(ctx.num_tokens, device=keep_UT.device)
        inside_T = (at_T >= self.sinks) & (at_T < tokens - self.window) if self.into == "selected" else at_T >= 0
        target_UT = keep_UT & inside_T
        before_UT = torch.where(target_UT, at_T, -tokens).cummax(1).values
        after_UT = torch.where(target_UT, at_T, 3 * tokens).flip(1).cummin(1).values.flip(1)
        nearest_UT = torch.where(at_T - before_UT <= after_UT - at_T, before_UT, after_UT)
        stays_UT = keep_UT | ~target_UT.any(1, keepdim=True)
        place_UT = torch.where(stays_UT, at_T, nearest_UT)
        return _means(ctx.k, place_UT), _means(ctx.v, place_UT)


def _means(x_UTD: Tensor, place_UT: Tensor) -> Tensor:
    """Return, at every place, the mean of the tokens that go there, and tokens without a place unchanged."""
    heads, tokens, _ = x_UTD.shape
    x_XD = x_UTD.float().flatten(0, 1)  # along the first dimension, torch adds up whole rows: 20 times as fast
    place_X = (place_UT + torch.arange(heads, device=place_UT.device)[:, None] * tokens).flatten()
    mean_XD: Tensor = x_XD.scatter_reduce(0, place_X[:, None].expand_as(x_XD), x_XD, "mean", include_self=False)
    return mean_XD.view_as(x_UTD).to(x_UTD.dtype)
